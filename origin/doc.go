// Package origin owns the identity of a transaction in the cluster: on which node and in which epoch it
// was first committed, its seq, its stamp, and what its author may have seen.
//
// It keeps invariants 3 (causality) and 5 (only concurrent writes conflict) in their pure form: a
// [Vector] says what has been seen, a [Version] says which of two writes is later, a [Clock] makes the
// stamps that extend "had seen" to a total order. It knows nothing of PostgreSQL, of NATS or of rows.
//
// There are no goroutines, no I/O and no wall clock here. Nothing in this package can be away.
//
// Begin with vector.go. Version vectors: Parker et al., "Detection of Mutual Inconsistency in
// Distributed Systems", 1983. The stamp is a hybrid logical clock: Kulkarni et al., "Logical Physical
// Clocks", 2014, with PostgreSQL's commit timestamp as its physical part.
package origin
