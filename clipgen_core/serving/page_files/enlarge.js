element.addEventListener("click", (event) => {
  const picture = event.target.closest(".picture");
  if (!picture) return;
  const { src, alt } = picture.querySelector("img");
  const dialog = document.createElement("dialog");
  const image = Object.assign(document.createElement("img"), { src, alt });
  const close = Object.assign(document.createElement("button"), { textContent: "Close" });
  dialog.id = "enlarged";
  dialog.append(image, close);
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => { dialog.remove(); picture.focus(); });
  document.body.append(dialog);
  dialog.showModal();
});
