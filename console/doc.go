// Package console serves the page on which people watch a node and act on it, and who may do what there.
//
// Requests come in over HTTP, from browsers; what is shown and done comes from the parts of [Options], which package bridge supplies as
// values to be told as JSON. It knows no SQL, no NATS and no configuration. It keeps no invariant of replication: whatever it asks for
// goes the way of the command of the same name.
//
// What it keeps is who may do what: nothing of a node is told without a session, and nothing is changed without one of an operator. A
// session begins with a token, is known by a cookie that scripts cannot read and other sites cannot send, and ends after twelve hours or
// with the process. Each request is also checked for where it comes from.
//
// Goroutines: none of its own; those of the HTTP server call it, and what they share stands behind a mutex.
//
// When PostgreSQL, the broker or a peer is away, the page is served as ever, and what cannot be told is an error in one sentence.
//
// Begin with console.go, then guard.go and signin.go; the page is in static.
package console
