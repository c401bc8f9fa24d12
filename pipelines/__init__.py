"""What reads, checks, runs, serves and replays pipelines; the command line."""
