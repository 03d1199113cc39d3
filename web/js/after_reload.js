// The host tells a reloaded page nothing of what nodes have shown, and a cached run only brings back what output nodes
// show. This asks the history: a node of ours whose inputs, and all that leads to it, are those of an earlier run shows
// again what it showed then.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const RUNS = 16; // how far back is looked

/** What decides the result of a node: its class and inputs, those of linked nodes in place of their ids. */
function recipe(prompt, id) {
  const node = prompt[id];
  if (!node) return null;
  const inputs = Object.keys(node.inputs ?? {}).sort().map((name) => {
    const value = node.inputs[name];
    const linked = Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && value[0] in prompt;
    return [name, linked ? [recipe(prompt, value[0]), value[1]] : value];
  });
  return [node.class_type, inputs];
}

function hasShown(id) {
  return Object.keys(app.nodeOutputs?.[id] ?? {}).length > 0;
}

/** The graph as it would be sent, and our nodes in it that show nothing. */
async function waiting() {
  const { output: prompt } = await app.graphToPrompt();
  return [prompt, Object.keys(prompt).filter((id) => prompt[id].class_type.startsWith("IDCodeFormer") && !hasShown(id))];
}

async function showAgain() {
  if (!(await waiting())[1].length) return;
  const answer = await api.fetchApi(`/history?max_items=${RUNS}`);
  if (!answer.ok) throw new Error(`history: ${answer.status}`);
  const runs = Object.values(await answer.json()).sort((a, b) => b.prompt[0] - a.prompt[0]);
  const [prompt, ours] = await waiting(); // meanwhile another graph may be open
  for (const id of ours) {
    const wanted = JSON.stringify(recipe(prompt, id));
    const run = runs.find((one) => one.outputs?.[id] && JSON.stringify(recipe(one.prompt[2], id)) === wanted);
    if (!run) continue;
    const detail = { node: id, display_node: id, output: run.outputs[id], prompt_id: run.prompt[1] };
    api.dispatchEvent(new CustomEvent("executed", { detail }));
  }
}

app.registerExtension({
  name: "IDCodeFormer.AfterReload",
  afterConfigureGraph() {
    // Not awaited: the page opens without it.
    showAgain().catch((error) => {
      console.warn("ID-CodeFormer: what nodes have shown before could not be looked up.", error);
    });
  },
});
