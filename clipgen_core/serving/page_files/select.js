element.addEventListener("click", (event) => {
  const picture = event.target.closest(".picture");
  if (picture) trigger("select", { index: Number(picture.dataset.index) });
});
