// On every page: copies the code next to a button, and opens the selected endpoint.
"use strict";

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".snippet").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // Without HTTPS, a browser does not allow access to the clipboard: select the code, so that the user can copy it.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

// The page changes only on submit, because some browsers fire a change event for each arrow key.
const pick = document.querySelector(".pick");
pick?.addEventListener("submit", (event) => {
  event.preventDefault();
  location.href = pick.dataset.root + "/endpoints/" + pick.endpoint.value + pick.dataset.suffix;
});
