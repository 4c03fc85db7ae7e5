// Package editor serves a web page with one text pane per node of a cluster. What is typed into a pane is committed to that node's
// primary, keystroke by keystroke, in an ordinary text column; what others write there is shown as it comes.
//
// It shows what an application has to do whose users edit one text at once, beside leaving the merge of what nodes have not seen of
// each other to pgbridge: a pane's keystrokes are changes of the text that the pane shows, which is not yet, or not any more, the row's. A
// whole text that is written over a row that has changed would take away what came in between. So a pane sends splices, and
// [Serve] moves each of them past what the pane had not seen (operational transformation, Ellis and Gibbs 1989), locks the
// row, and writes the text that comes out.
//
// Per pane of an open page the server knows what the page shows (desk.go); a page need not transform anything. It takes a delivery only
// if that was worked out for all that it has typed, and else waits for the next, which will have been (static/pane.js).
//
// It knows neither pgbridge nor how nodes are linked. Only demo imports it.
//
// Begin with Serve in serve.go and edit in desk.go.
package editor
