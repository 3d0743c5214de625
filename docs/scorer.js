// Which page a search shows first: one that explains before one that mentions. Words of docs/pages.py count as index entries, up to 100.
var Scorer = {
  score: ([page, title, anchor, description, score, file, kind]) =>
    score + (kind === 'title' && anchor ? 1 : 0) // the section before its page
          + (page.startsWith('guides/') ? 4 : page.startsWith('tutorials/') ? 2 : ['changelog', 'contributing'].includes(page) ? -4 : 0),
  objNameMatch: 16, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
