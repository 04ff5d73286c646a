// Puts a button on every block of code that copies it. Without JavaScript there is no button, and the code can be selected.
const { copy, copied } = document.body.dataset;

for (const block of document.querySelectorAll(".code")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = copy;
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    const code = block.querySelector("pre");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = copied;
      setTimeout(() => { button.textContent = copy; }, 2000);
    } catch { // the browser does not allow it: select the code, so that a key copies it
      getSelection().selectAllChildren(code);
    }
  });
  block.append(button);
}
