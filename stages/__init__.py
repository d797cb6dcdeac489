"""One folder per stage of the pipeline, in the order they run."""
