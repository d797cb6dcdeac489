"""Looking at a folder of somebody's files: which are images and masks, what the masks say, how to split them."""
