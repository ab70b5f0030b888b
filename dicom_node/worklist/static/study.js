// Keys of a study's page beside those of the viewer: m marks it read, g goes back, y and n say whether it is right.
"use strict";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text], textarea, select")) return;
  const choose = (verdict) => {
    const radio = document.querySelector(`.feedback input[value=${verdict}]`);
    radio.checked = true;
    radio.focus();
  };
  if (event.key === "m") document.querySelector(".study-head .mark-read").click();
  else if (event.key === "g") document.querySelector(".study-head .back").click();
  else if (event.key === "y") choose("agree");
  else if (event.key === "n") choose("disagree");
  else if (event.key === "u") choose("unsure");
  else return;
  event.preventDefault();
});
