// The page's state as a file: HTML that resumes from it, JSON, and the picture that is shown.

import { save } from "./dom.js";
import { asPng, standalone } from "./pictures.js";

export const EXPORTS = {
  exportHtml(page) {
    const copy = document.documentElement.cloneNode(true);
    copy.querySelector("#app").replaceChildren();
    copy.querySelector("#state").textContent = JSON.stringify(state(page)).replace(/</g, "\\u003c");
    for (const name of ["state", "theme"]) delete copy.dataset[name];
    save("clearhead.html", `<!doctype html>\n${copy.outerHTML}`, "text/html");
  },

  exportJson(page) {
    const { ids, texts, probabilities, prompt } = page.path();
    const text = { text: texts.join(""), prompt, tokens: ids.map((id, i) => ({ id, text: texts[i], probability: probabilities[i] ?? null })) };
    save("clearhead.json", JSON.stringify({ model: page.about.name, ...text, ...state(page) }, null, 1), "application/json");
  },

  exportSvg() {
    const shown = shownPicture();
    if (shown) save("clearhead.svg", standalone(shown), "image/svg+xml");
  },

  async exportPng() {
    const shown = shownPicture();
    if (shown) save("clearhead.png", await asPng(shown), "image/png");
  },
};

const shownPicture = () => document.querySelector("#panel svg") ?? document.querySelector("#branch-map svg");

function state({ tree, settings, length, theme, language, ablation, inside }) {
  return { tree, settings, length, theme, language, ablation: [...ablation], inside: { tab: inside.tab, block: inside.block, head: inside.head } };
}
