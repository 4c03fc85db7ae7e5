// Package catalog owns what a node's replicated tables look like: columns, types, keys, and the sequences that fill them.
//
// A connection to a primary and the tables that capture chooses come in; a Summary goes out, which one node can tell another
// as JSON, the differences between two of them, and the statements by which sequences of several nodes give different values.
//
//  1. Reading changes nothing.
//  2. What differs, what collides and what is planned are pure functions of Summaries: who knows the same says the same.
//
// It does not know how Summaries travel, nor what a finding means to an operator: that is package doctor's. It has no goroutine. When
// PostgreSQL is away, Read says so.
//
// Begin with summary.go; sequences are planned in plan.go.
package catalog
