"""The HTML page of a training or a catalogue: what was run, what became of every star, how good it
is, what to worry about.

Data flow: `accounts`, `census`, `goodness`, `facts` and `pictures` read files and give numbers,
`worries` judges them, `tables` says them, `page` fills page.html.j2 with them. `after` is what the
steps call.
"""
