// Package sim owns what a simulation of a cluster has apart from the bridge: schedules and a model of PostgreSQL.
//
// A [Schedule] is a list of events, made from a seed by [Generate], written and read as text, and made shorter by
// [Shrink] while it still fails. A [Server] keeps rows, locks, commit records and crashes as PostgreSQL does; a
// [Table] knows how users edit its rows. What apply decides is not here: its tests put the real code on top
// (apply/sim_test.go), and integration/schedule_test.go runs the same schedules on real servers.
//
// There are no goroutines, no I/O and no wall clock here; chance comes from the seed alone.
//
// Begin with schedule.go, then server.go. The order of a commit's steps: PostgreSQL's xact.c (RecordTransactionCommit)
// and procarray.c (ProcArrayEndTransaction); shrinking: Zeller and Hildebrandt, "Simplifying and Isolating
// Failure-Inducing Input", 2002.
package sim
