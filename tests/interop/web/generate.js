// Loads the artifact below /artifact with onnxruntime-web's WASM build and posts greedy tokens to /answer.
import * as ort from "/ort/ort.wasm.bundle.min.mjs";

const PAST = "past_key_values";

const int64 = (values, shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);

const highest = (logits) => logits.reduce((best, value, at) => (value > logits[best] ? at : best), 0);

async function bytes(name) {
  return new Uint8Array(await (await fetch(`/artifact/${name}`)).arrayBuffer());
}

async function open() {
  ort.env.wasm.numThreads = 1; // more threads want a page that is isolated from other origins
  ort.env.wasm.wasmPaths = "/ort/";
  const data = { path: "model.onnx.data", data: await bytes("model.onnx.data") };
  return ort.InferenceSession.create(await bytes("model.onnx"), {
    executionProviders: ["wasm"],
    externalData: [data],
  });
}

// `ids` continued by `count` tokens, one prompt, the past growing by what each run returns.
async function generate(session, { kv_heads, head_dim, vocab }, ids, count) {
  const names = session.inputNames.filter((name) => name.startsWith(PAST));
  const empty = () => new ort.Tensor("float32", new Float32Array(0), [1, kv_heads, 0, head_dim]);
  let past = Object.fromEntries(names.map((name) => [name, empty()]));
  let fresh = ids;
  const found = [];
  while (found.length < count) {
    const total = ids.length + found.length;
    const feeds = { input_ids: int64(fresh, [1, fresh.length]), attention_mask: int64(Array(total).fill(1), [1, total]), ...past };
    if (session.inputNames.includes("position_ids")) {
      feeds.position_ids = int64(fresh.map((_, at) => total - fresh.length + at), [1, fresh.length]);
    }
    const outputs = await session.run(feeds);
    fresh = [highest(outputs.logits.data.slice(-vocab))];
    found.push(fresh[0]);
    past = Object.fromEntries(names.map((name) => [name, outputs[name.replace(PAST, "present")]]));
  }
  return found;
}

async function answer() {
  const { prompts, tokens } = await (await fetch("/request")).json();
  const { model } = await (await fetch("/artifact/manifest.json")).json();
  const session = await open();
  const began = performance.now();
  const found = [];
  for (const prompt of prompts) found.push(await generate(session, model, prompt, tokens));
  return { tokens: found, milliseconds: performance.now() - began, inputs: session.inputNames };
}

const found = await answer().catch((error) => ({ error: String(error) }));
await fetch("/answer", { method: "POST", body: JSON.stringify(found) });
