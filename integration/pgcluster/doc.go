// Package pgcluster runs real PostgreSQL clusters as child processes: for the
// integration tests and for `pgbridge demo`.
//
// In come an installed PostgreSQL (Find, Installed) and the settings of one
// cluster; out goes a running server that answers on a Unix socket and on
// 127.0.0.1. It knows neither tests nor pgbridge: package pgtest binds it to
// the testing package, the demo uses it as it is.
//
// A cluster is a copy of a template that initdb made once for each installed
// version and that is kept in the cache directory. Each copy gets a system
// identifier of its own, as if initdb had made it. PostgreSQL refuses to run as
// root, so for root the server runs as the user postgres, or else nobody, and
// everything that it must read has to be reachable for that user.
//
// Goroutines: one for each running server, locked to its thread. It starts the
// postmaster, waits for it and ends with it. On Linux the kernel stops the
// postmaster at once (SIGQUIT) when that thread dies, so that no server
// outlives the program that started it, not even after kill -9.
//
// When a server does not come up, Start says why, with the last lines of its
// log. When it goes away by itself, Pid becomes 0, and Restart starts it anew.
//
// Begin reading at Start in cluster.go. Facts about the postmaster (signals,
// exit, lock files) are from the PostgreSQL documentation, "Shutting Down the
// Server", and from src/backend/postmaster/postmaster.c.
package pgcluster
