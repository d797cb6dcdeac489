"""What `pipeline new` writes: the smallest network, dataset and recipe that work as they are."""
