// Rewrite the queries of the search, so that it answers questions in the words of the reader.
// The theme takes each word of a query as the beginning of a word. So "a" would match every page, and "deployed" would not find "deploy".
(() => {
  const QUERY = 2; // The type of the messages with which the theme sends a query to its worker.
  const words = (text) => text.split(/\s+/).filter(Boolean);

  // Words that say nothing about the answer: they are ignored unless a query has no other words.
  const STOP_WORDS = new Set(
    words(
      "a about all an and any are as at be been but by can could did do does doing each for from get gets getting had has have how i " +
        "if in inference into is it its just let like make me model models my need no of on only onnxserve or our possible service should so some than that the " +
        "their them then there these they this to tried trying us use used using very want was way we were what when where which while " +
        "who why will with within work works would you your"
    )
  );

  const ENDINGS = [[/ies$/, "y"], [/(ing|ed|es|s)$/, ""], [/([bdgmnprt])\1$/, "$1"]];
  const stem = (word) => {
    const short = ENDINGS.reduce((rest, [ending, other]) => rest.replace(ending, other), word);
    return short.length > 3 ? short : word;
  };

  const rewrite = (query) => {
    const asked = query.toLowerCase().split(/[\s,:;?!()"'’]+|\.(?!\d)|-/).filter(Boolean);
    const telling = asked.filter((word) => !STOP_WORDS.has(word));
    // The word itself counts three times as much as another word that begins like it.
    return telling.flatMap((word) => [`${word}^2`, stem(word)]).join(" ");
  };

  const postMessage = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message, ...options) {
    if (message?.type === QUERY && typeof message.data === "string") {
      message = { ...message, data: rewrite(message.data) || message.data };
    }
    return postMessage.call(this, message, ...options);
  };
})();
