async () => {
  // What the page says of what is wrong with a workflow, once PATTERN is in it: at once, or behind a button.
  for (;;) { // as long as the test lets it
    const text = document.body.innerText;
    if (PATTERN.test(text) && !/View details/.test(text)) return text;
    [...document.querySelectorAll("button")].find((e) => /View details/.test(e.innerText))?.click();
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}
