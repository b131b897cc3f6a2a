// Adds a link to MLflow's pages, from a registered model and its versions to the endpoints that serve the model.
"use strict";
{
  const console_page = new URL(".", document.currentScript.src).pathname.slice(0, -1);
  const link = document.createElement("a");
  link.textContent = "Endpoints in onnxserve";
  link.style.cssText = "position: fixed; left: 50%; bottom: 24px; translate: -50%; z-index: 10; padding: 8px 16px; border-radius: 999px; background: #256b65; color: #fff; font: 600 14px/1.4 system-ui, sans-serif; box-shadow: 0 2px 8px #0004;";

  function follow() {
    const [path, query] = location.hash.slice(1).split("?");
    const model = /^\/models\/([^/]+)/.exec(path)?.[1];
    if (!model) return link.remove();
    const workspace = new URLSearchParams(query).get("workspace");
    link.href = `${console_page}?${new URLSearchParams({ model: decodeURIComponent(model), ...(workspace && { workspace }) })}`;
    if (!link.isConnected) document.body.append(link);
  }

  setInterval(follow, 500); // MLflow changes its URL without an event.
}
