// On every page: copies the code beside a button, and goes to the endpoint that is chosen.
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

// By its button: where the arrow keys change a list that is closed, each step would be a page of its own.
const pick = document.querySelector(".pick");
pick?.addEventListener("submit", (event) => {
  event.preventDefault();
  location.href = "/endpoints/" + pick.endpoint.value + pick.dataset.suffix;
});
