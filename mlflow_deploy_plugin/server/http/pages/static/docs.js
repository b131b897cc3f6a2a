// Copies the code beside a button, and goes to the endpoint that is chosen.
"use strict";

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".snippet").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // without https a browser lends no clipboard: the code is selected, to be copied by hand
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

const endpoint = document.getElementById("endpoint");
endpoint?.addEventListener("change", () => {
  location.href = "/endpoints/" + endpoint.value + endpoint.dataset.suffix;
});
