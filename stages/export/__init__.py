"""Ship a trained network without its depth branch: stripped, in several formats, with a proof and a card."""
