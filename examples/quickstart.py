"""The whole way from Python in a few minutes, offline, on drawn scenes.

    python examples/quickstart.py [RECIPE [WORKDIR]]

Label with pseudo depth, train with and without it, compare, export without the depth decoder, predict.
"""

import sys

import pipeline

recipe = sys.argv[1] if len(sys.argv) > 1 else "demo"
workdir = sys.argv[2] if len(sys.argv) > 2 else "artifacts"

# Depth by a teacher, once for each image. `report.store` is an HDF5 folder.
for report in pipeline.label(recipe, workdir=workdir):
    store = pipeline.depth_store(report.store)
    depth = store[next(iter(store))]  # (h, w) float32
    print(f"{report.store}: {len(store)} maps of {depth.shape[0]} x {depth.shape[1]} px")

# Two schedules with the same seed. What the recipe says can be changed by the names of the command line's flags.
run = pipeline.train(recipe, schedule="depth-first", copy_weights=True, workdir=workdir)
pipeline.train(recipe, schedule="seg-only", workdir=workdir)

# One record a row; `pandas.DataFrame(rows)` takes them. One seed is no evidence, so there is no interval.
rows = pipeline.compare(workdir=workdir)
for row in rows:
    print(f"{row['name']:18} {row['total_steps']:5} steps   mIoU {row['miou_macro']:.3f}")

# Only the segmentation ships, and is proven to answer as it did beside the depth decoder.
export = pipeline.export(run, formats=("safetensors", "onnx"), benchmark=False, overwrite=True, workdir=workdir)
print(f"{export.out}: full against stripped differ by {export.report.proof['max_abs_difference']['stripped_vs_full']}")

# The file that ships runs by its own runtime; the run itself has depth besides.
shipped, trained = pipeline.load(export, format="onnx"), pipeline.load(run)
image = pipeline.open_split(recipe, "val", workdir=workdir).read_image(0)  # (H, W, 3) uint8, or a path
labels, probabilities, depth = trained.predict(image)
agree = (shipped.predict(image).labels == labels).mean()
print(f"labels {labels.shape}, probabilities {probabilities.shape}, depth {depth.shape}; ONNX agrees on {agree:.2%}")
print(f"in the upper left corner: {trained.class_names[labels[0, 0]]}")
