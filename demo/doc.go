// Package demo plays the scripted demonstration: real PostgreSQL clusters, a bridge beside each, writers
// on all of them, one conflict, one crash, and a comparison of all rows at the end. In come a program to
// run the bridges with and a few figures; out goes an account for a person to read.
//
// It judges invariants 1 (nothing lost, nothing twice), 2 (convergence) and 3 (causality) from outside,
// by what it committed itself and by what each database shows. Of the product it knows the command line,
// the configuration file, status, and the two tables that every operator may read: pgbridge.position and
// pgbridge.conflict. It does not know the wire, NATS or how anything is applied. Only cmd/pgbridge
// imports it.
//
// Goroutines: two writers per node while there is load, joined by load.stop; one per bridge, locked to
// its thread, which starts the program, waits for it and ends with it, so that on Linux the kernel ends a
// bridge when the demonstration dies. Everything else is done by the caller of Run, in the order of the
// script.
//
// Nothing is waited for without a deadline. A bridge that ends by itself, a server that goes away or a
// writer that meets an unexpected error ends the demonstration with the tail of the bridges' logs. Each
// node lives in the directory that pgcluster makes for its server, so that even what a kill -9 leaves
// behind is removed by the next start of any cluster.
//
// Begin with Run and play in demo.go.
package demo
