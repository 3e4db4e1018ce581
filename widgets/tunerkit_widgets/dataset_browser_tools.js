// Changes of many captions at once: what they would do is counted before they are done.

function makeTools({ page, say, send }) {
  const field = (key) => make("input", "field", { type: "text", placeholder: say(key), dir: "auto", aria: { label: say(key) } });
  const button = (key) => make("button", "button", { type: "button", textContent: say(key), disabled: true });
  const [find, replacement, prefix] = ["find", "replacement", "prefix"].map(field);
  const matchCase = make("input", "", { type: "checkbox", checked: true });
  const tools = {
    replace: {
      button: button("replace"), result: make("span", "count", { aria: { live: "polite" } }),
      content: () => ({ words: find.value, replacement: replacement.value, match_case: matchCase.checked }),
    },
    prefix: {
      button: button("add_prefix"), result: make("span", "count", { aria: { live: "polite" } }),
      content: () => ({ words: prefix.value.trim() }),
    },
  };
  const many = make("details", "many", {}, [
    make("summary", "", { textContent: say("many") }),
    make("div", "bar", {}, [
      find, replacement, make("label", "", {}, [matchCase, say("match_case")]), tools.replace.button, tools.replace.result,
    ]),
    make("div", "bar", {}, [prefix, tools.prefix.button, tools.prefix.result]),
  ]);
  let ticket = 0; // of the last count asked for: an older answer is for other words or other files
  const countTools = later(() => {
    ticket += 1;
    for (const [tool, { button: apply, result, content }] of Object.entries(tools)) {
      apply.disabled = true;
      result.textContent = "";
      if (many.open && content().words) send("count", { tool, ticket, rows: page.shown, ...content() });
    }
  }, TYPING_MS);

  function showCount(message) {
    if (message.ticket !== ticket) return;
    const { button: apply, result } = tools[message.tool];
    apply.disabled = !message.files;
    result.textContent = say(message.files ? "would_change" : "nothing_changes", { ...message, shown: page.shown.length });
    result.title = message.example.join("\n→\n");
  }

  for (const input of [find, replacement, prefix, matchCase]) {
    input.addEventListener("input", () => {
      for (const tool of Object.values(tools)) tool.button.disabled = true; // until it is counted
      countTools();
    });
  }
  many.addEventListener("toggle", countTools);
  for (const [tool, { button: apply, content }] of Object.entries(tools)) {
    apply.addEventListener("click", () => {
      apply.disabled = true;
      send("change", { tool, rows: page.shown, ...content() });
    });
  }

  return { node: many, count: countTools, showCount };
}
