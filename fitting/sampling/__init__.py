"""Draws from the posteriors of chosen stars (step 10 with --samples).

Data flow: `shards` reads stars and writes their draws; `samples` makes the draws of solved stars by
`sampler`, whose density is `star_density` and whose proposals are `proposals`; `mixing` says
whether they can be trusted. `random_numbers` depend on the star alone.
"""
