// Adds a link to MLflow's pages, from a registered model and its versions to the endpoints that serve the model.
"use strict";
{
  const console_page = new URL(".", document.currentScript.src).pathname.slice(0, -1);
  const link = document.createElement("a");
  link.textContent = "Endpoints in onnxserve";
  link.style.cssText = "display: block; width: fit-content; margin: 16px 16px 0; padding: 6px 12px; border-radius: 8px; overflow-wrap: anywhere; background: #256b65; color: #fff; font: 600 14px/1.4 system-ui, sans-serif;";

  function follow() {
    const [path, query] = location.hash.slice(1).split("?");
    const model = /^\/models\/([^/]+)/.exec(path)?.[1];
    if (!model) return link.remove();
    const workspace = new URLSearchParams(query).get("workspace");
    link.href = `${console_page}?${new URLSearchParams({ model: decodeURIComponent(model), ...(workspace && { workspace }) })}`;
    const content = document.querySelector("main") ?? document.body;
    if (link.parentElement !== content) content.prepend(link);
  }

  setInterval(follow, 500); // MLflow changes its URL without an event.
}
