// The page: takes photos and camera frames, asks the worker for their labels, and shows them. What it must know of the
// model stands in model.json, which the export wrote beside it.
"use strict";

const MOST_PIXELS = 2e6; // of what is labelled: larger photos are reduced, so that a phone's memory holds them
const FRAMES = 10; // over which frames per second are taken
const at = (id) => document.getElementById(id);
const [photo, labels, stream] = [at("photo"), at("labels"), at("stream")];

let model, worker, colours, media, wanted = 0;
let finished = [];

function say(words, problem = false) {
  at("status").textContent = words;
  at("status").classList.toggle("problem", problem);
}

function refuse(words) {
  say(words, true);
  at("file").disabled = at("camera").disabled = true;
}

async function start() {
  if (location.protocol === "file:")
    return refuse("Browsers run models only on pages that come from a server. In this page's folder run: " +
      "python -m http.server, then open http://localhost:8000");
  if (typeof WebAssembly === "undefined" || typeof Worker === "undefined")
    return refuse("This browser has no WebAssembly, with which the model runs; try another, or a newer one.");
  try {
    const answer = await fetch("model.json");
    if (!answer.ok) throw new Error(`model.json: ${answer.status} ${answer.statusText}`);
    model = await answer.json();
  } catch (problem) {
    return refuse(`The model's description cannot be read (${problem.message}); is the folder complete?`);
  }
  document.title = at("about").previousElementSibling.textContent = `What ${model.name} sees`;
  at("facts").textContent = `Model ${model.file}, ${(model.bytes / 1e6).toFixed(1)} MB; ${model.enters}. ` +
    `Run by ONNX Runtime Web ${model.runtime} (MIT licence, Microsoft).`;
  colours = new Uint32Array(256);
  model.palette.forEach(([red, green, blue], index) => { // little-endian, as every browser's machine is
    colours[index] = (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  });
  writeLegend();
  say("Loading the model …");
  worker = new Worker("worker.js", { type: "module" });
  worker.onerror = (event) => refuse(`The model cannot be run here: ${event.message || "its worker does not start"}`);
  worker.onmessage = ({ data }) => receive(data);
  worker.postMessage({ load: model.file });
}

function writeLegend() {
  const rows = model.class_names.map((name, index) => {
    const row = document.createElement("tr");
    const head = row.appendChild(document.createElement("th"));
    head.scope = "row";
    const swatch = head.appendChild(document.createElement("canvas")); // a style would need looser rules for styles
    swatch.className = "swatch";
    [swatch.width, swatch.height] = [1, 1];
    swatch.setAttribute("aria-hidden", "true");
    const brush = swatch.getContext("2d");
    brush.fillStyle = `rgb(${model.palette[index].join(" ")})`;
    brush.fillRect(0, 0, 1, 1);
    head.append(name);
    const cell = row.appendChild(document.createElement("td"));
    const bar = cell.appendChild(document.createElement("meter"));
    bar.setAttribute("aria-label", name);
    cell.appendChild(document.createElement("span")).textContent = "–";
    return row;
  });
  at("legend").tBodies[0].replaceChildren(...rows);
}

function receive(answer) {
  if (answer.ready) {
    at("file").disabled = at("camera").disabled = false;
    return say(`Ready (${answer.threads} ${answer.threads > 1 ? "threads" : "thread"}).`);
  }
  if (answer.problem !== undefined) {
    stopCamera();
    return (answer.fatal ? refuse : (words) => say(words, true))(answer.problem);
  }
  if (answer.number !== wanted) return; // of something that is not shown any more
  show(answer);
  finished = [...finished.slice(-FRAMES), performance.now()];
  const rate = media && finished.length > 1 && (finished.length - 1) * 1000 / (finished.at(-1) - finished[0]);
  at("speed").textContent = `${answer.width} × ${answer.height} px in ${answer.milliseconds.toFixed(0)} ms` +
    (rate ? `, ${rate.toFixed(1)} frames per second` : "");
  if (media) requestAnimationFrame(labelFrame);
  else say(answer.note || "Done.");
}

function show(answer) {
  [photo.width, photo.height] = [labels.width, labels.height] = [answer.width, answer.height];
  photo.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(answer.rgba), answer.width), 0, 0);
  const drawn = new ImageData(answer.width, answer.height);
  const pixels = new Uint32Array(drawn.data.buffer);
  answer.labels.forEach((label, index) => { pixels[index] = colours[label]; });
  labels.getContext("2d").putImageData(drawn, 0, 0);
  photo.hidden = labels.hidden = false;
  at("empty").hidden = true;
  at("view").classList.add("full");
  const rows = at("legend").tBodies[0].rows;
  const shares = Array.from(rows, (_, index) => answer.counts[index] / answer.labels.length);
  shares.forEach((share, index) => {
    rows[index].querySelector("meter").value = share;
    rows[index].querySelector("span").textContent = `${(share * 100).toFixed(1)} %`;
  });
  const largest = shares.map((share, index) => [share, model.class_names[index]]).sort((a, b) => b[0] - a[0]);
  const words = largest.slice(0, 3).map(([share, name]) => `${name} ${(share * 100).toFixed(0)} %`);
  labels.setAttribute("aria-label", `Label map: ${words.join(", ")}`);
}

// Draws a picture at its size, or at a smaller one, over white as transparent pixels are read, and has it labelled.
function ask(picture, width, height) {
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const [columns, rows] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = new OffscreenCanvas(columns, rows);
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  brush.fillStyle = "white";
  brush.fillRect(0, 0, columns, rows);
  brush.imageSmoothingQuality = "high";
  brush.drawImage(picture, 0, 0, columns, rows);
  const rgba = brush.getImageData(0, 0, columns, rows).data.buffer;
  const note = scale < 1 ? `Done; reduced from ${width} × ${height} to ${columns} × ${rows} px for this page.` : "";
  wanted += 1;
  worker.postMessage({ number: wanted, rgba, width: columns, height: rows, note }, [rgba]);
}

async function takeFile(file) {
  if (!file || at("file").disabled) return;
  stopCamera();
  let picture;
  try { // upright, and in the numbers that the file has: so the model's training images were read
    picture = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    return say(`${file.name} is no image that this browser can read.`, true);
  }
  say(`Labelling ${file.name} …`);
  ask(picture, picture.width, picture.height);
  picture.close();
}

const CAMERA_PROBLEMS = {
  NotAllowedError: "The camera was not allowed; allow it in the browser's settings for this page.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera cannot be opened; does another program use it?",
};

async function toggleCamera() {
  if (media) return stopCamera();
  if (!navigator.mediaDevices?.getUserMedia)
    return say("No camera can be used here: browsers allow it only on https pages and on localhost.", true);
  say("Opening the camera …");
  try {
    media = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
    stream.srcObject = media;
    await stream.play();
  } catch (problem) {
    stopCamera();
    return say(CAMERA_PROBLEMS[problem.name] || `The camera cannot be used: ${problem.message}`, true);
  }
  finished = [];
  at("camera").textContent = "Stop the camera";
  say("The camera is on.");
  labelFrame();
}

function labelFrame() {
  if (media) ask(stream, stream.videoWidth, stream.videoHeight);
}

function stopCamera() {
  if (!media) return;
  media.getTracks().forEach((track) => track.stop());
  media = stream.srcObject = null;
  wanted += 1; // the frame that is under way is not shown any more
  at("camera").textContent = "Use the camera";
  say("The camera is off.");
}

at("file").addEventListener("change", ({ target }) => {
  takeFile(target.files[0]);
  target.value = ""; // so that the same photo can be chosen again
});
at("camera").addEventListener("click", toggleCamera);
at("opacity").addEventListener("input", ({ target }) => {
  labels.style.opacity = target.value / 100;
  at("strength").textContent = `${target.value} %`;
});
labels.style.opacity = at("opacity").value / 100;
at("strength").textContent = `${at("opacity").value} %`;
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("view").classList.toggle("over", name === "dragover");
    if (name === "drop") takeFile(event.dataTransfer.files[0]);
  });
start();
