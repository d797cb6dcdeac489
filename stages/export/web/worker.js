// Runs the model, so that the page stays alive meanwhile: RGBA bytes in, labels out.
import * as ort from "./onnxruntime-web.js";

let session;

async function load(file) {
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1; // what servers must allow
  ort.env.wasm.wasmPaths = { wasm: new URL("onnxruntime-web.wasm", self.location).href };
  ort.env.wasm.numThreads = threads;
  session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  return { ready: true, threads };
}

async function label({ number, rgba, width, height, note }) {
  const started = performance.now();
  const source = new Uint8Array(rgba);
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < source.length; from += 4) {
    rgb[to++] = source[from];
    rgb[to++] = source[from + 1];
    rgb[to++] = source[from + 2];
  }
  const answer = await session.run({ image: new ort.Tensor("uint8", rgb, [1, height, width, 3]) });
  const labels = answer.labels.data.slice();
  const counts = new Uint32Array(256);
  for (const one of labels) counts[one] += 1;
  const milliseconds = performance.now() - started;
  return { number, rgba, width, height, note, labels, counts, milliseconds };
}

self.onmessage = async ({ data }) => {
  try {
    const answer = await (data.load ? load(data.load) : label(data));
    self.postMessage(answer, answer.labels ? [answer.rgba, answer.labels.buffer] : []);
  } catch (problem) {
    const words = data.load ? "The model cannot be loaded here" : "The model cannot label this image";
    self.postMessage({ problem: `${words}: ${problem.message || problem}`, fatal: Boolean(data.load) });
  }
};
