"""What the steps share: schema, release, shards, archive jobs, figures."""
