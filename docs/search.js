// Remove stop words from the queries of the search. The theme takes each word of a query as the beginning of a word, so "a"
// would match every page, and "how do I roll back a version" would not find the page about rollbacks first.
(() => {
  const QUERY = 2; // The type of the messages with which the theme sends a query to its worker.
  const STOP_WORDS = new Set(
    ("a about an and any are as at be but by can could do does did for from had has have how i if in into is it its me " +
      "my no of on or our should so than that the their them then there these they this to us was we were what when " +
      "where which who why will with would you your").split(" ")
  );
  const postMessage = Worker.prototype.postMessage;

  Worker.prototype.postMessage = function (message, ...options) {
    if (message?.type === QUERY && typeof message.data === "string") {
      const words = message.data.split(/\s+/).filter((word) => !STOP_WORDS.has(word.toLowerCase().replace(/[?!.,]+$/, "")));
      if (words.join("")) {
        message = { ...message, data: words.join(" ") };
      }
    }
    return postMessage.call(this, message, ...options);
  };
})();
