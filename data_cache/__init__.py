"""What lies on disk: datasets, depth stores, and the vocabulary every stage shares."""
