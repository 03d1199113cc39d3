// The example workflows load pictures that ship with the pack. When one of them is opened, and only then, those of its
// pictures that are not in the input folder yet are put there, so that Run works at once.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const SAMPLES = new URL("../samples/", import.meta.url);
const NAMES = new Set([
  "idcodeformer_portrait.jpg",
  "idcodeformer_portrait_reference.jpg",
  "idcodeformer_group.jpg",
  "idcodeformer_group_reference.jpg",
  "idcodeformer_clip.mp4",
]);
const COMBOS = { LoadImage: "image", LoadVideo: "file" };

function wanted(graph) {
  const names = new Set();
  for (const node of graph?.nodes ?? []) {
    const value = node.type in COMBOS ? node.widgets_values?.[0] : undefined;
    if (NAMES.has(value)) names.add(value);
  }
  return names;
}

async function isThere(name) {
  const answer = await api.fetchApi(`/view?filename=${name}&type=input`, { method: "HEAD", cache: "no-store" });
  return answer.ok;
}

async function putThere(name) {
  const picture = await fetch(new URL(name, SAMPLES));
  if (!picture.ok) throw new Error(`${picture.status} ${picture.url}`);
  const form = new FormData();
  form.append("image", new File([await picture.blob()], name));
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (!answer.ok) throw new Error(`upload of ${name}: ${answer.status}`);
}

function offer(name) {
  // The combos were filled when the page was opened.
  for (const [type, input] of Object.entries(COMBOS)) {
    const spec = LiteGraph.registered_node_types[type]?.nodeData?.input?.required?.[input];
    for (const options of [spec?.[0], spec?.[1]?.options]) {
      if (Array.isArray(options) && !options.includes(name)) options.push(name);
    }
  }
}

app.registerExtension({
  name: "IDCodeFormer.SamplePictures",
  async beforeConfigureGraph(graph) {
    for (const name of wanted(graph)) {
      try {
        if (!(await isThere(name))) {
          await putThere(name);
          offer(name);
        }
      } catch (error) {
        console.warn(`ID-CodeFormer: the sample ${name} could not be put into the input folder.`, error);
      }
    }
  },
});
