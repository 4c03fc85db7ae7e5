package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
)

// line is one kind of work. Its tables and first rows are made at both ends before replication is set
// up; then the work is committed at the source.
type line struct {
	name, title string
	kind        string // how it is measured: one of the kinds below
	unit        string // what amount counts
	amount      int    // of the full work
	least       int    // what remains of it at the smallest scale
	prepare     func(ctx context.Context, s *server, n int) error
	write       func(ctx context.Context, s *server, n int) error // of a catch-up
	// everywhere makes write run at each end, before replication goes on: the line ends when all ends have all. Native
	// replication does not run such a line.
	everywhere bool
	third      bool // there is a third node
	peers      int  // that receive; 0 is 1
	long       bool // runs with -long
	rate       int  // of a latency probe: rows a second
}

// The kinds of lines.
const (
	kindCatchUp = "catch-up" // catchup.go
	kindLatency = "latency"  // latency.go
	kindSteady  = "steady"   // steady.go
	kindIdle    = "idle"     // idle.go
)

// latencySeconds is how long the latency probe runs.
const latencySeconds = 10

// insertRows is how many rows one of the small inserts has.
const insertRows = 1000

func lines() []line {
	return []line{
		{name: "pgbench-n", title: "pgbench -N", kind: kindCatchUp, unit: "transactions", amount: 100_000, least: 400,
			prepare: preparePgbench, write: writeSmall},
		{name: "tpcb", title: "pgbench (tpcb-like)", kind: kindCatchUp, unit: "transactions", amount: 50_000, least: 400,
			prepare: preparePgbench, write: func(ctx context.Context, s *server, n int) error { return runPgbench(ctx, s, n) }},
		{name: "one-insert", title: "one insert", kind: kindCatchUp, unit: "rows", amount: 1_000_000, least: 1000,
			prepare: prepareEmpty, write: func(ctx context.Context, s *server, n int) error {
				return s.exec(ctx, fmt.Sprintf(insertSQL, 1, n))
			}},
		{name: "one-update", title: "one update", kind: kindCatchUp, unit: "rows", amount: 1_000_000, least: 1000,
			prepare: prepareFilled, write: func(ctx context.Context, s *server, _ int) error {
				return s.exec(ctx, "UPDATE bench_rows SET n = n + 1")
			}},
		{name: "many-inserts", title: "inserts of 1 000 rows", kind: kindCatchUp, unit: "rows", amount: 500 * insertRows, least: insertRows,
			prepare: prepareEmpty, write: writeInserts},
		{name: "one-delete", title: "one delete", kind: kindCatchUp, unit: "rows", amount: 1_000_000, least: 1000,
			prepare: prepareFilled, write: func(ctx context.Context, s *server, _ int) error {
				return s.exec(ctx, "DELETE FROM bench_rows")
			}},
		{name: "apart", title: "both ways, rows apart", kind: kindCatchUp, unit: "transactions", amount: 20_000, least: 100, prepare: prepareRows,
			everywhere: true, write: func(ctx context.Context, s *server, n int) error {
				return updateRows(ctx, s, n*s.place+1, n*(s.place+1))
			}},
		{name: "contested", title: "both ways, the same rows", kind: kindCatchUp, unit: "transactions", amount: 20_000, least: 100, prepare: prepareRows,
			everywhere: true, write: func(ctx context.Context, s *server, n int) error { return updateRows(ctx, s, 1, n) }},
		{name: "mesh", title: "mesh of three, all write", kind: kindCatchUp, unit: "applied transactions", amount: 6 * 10_000, least: 600,
			third: true, everywhere: true, prepare: func(ctx context.Context, s *server, n int) error { return prepareFilled(ctx, s, n/2) },
			write: func(ctx context.Context, s *server, n int) error { // each is applied at both other nodes
				return updateRows(ctx, s, n/6*s.place+1, n/6*(s.place+1))
			}},
		{name: "wide", title: "updates of 40 columns", kind: kindCatchUp, unit: "rows", amount: 100 * wideChunk, least: wideChunk,
			prepare: prepareWide, write: writeWide},
		{name: "toast", title: "updates beside 8 kB", kind: kindCatchUp, unit: "transactions", amount: 20_000, least: 100,
			prepare: prepareToast, write: writeToast},
		{name: "jsonb", title: "jsonb documents", kind: kindCatchUp, unit: "transactions", amount: 20_000, least: 100,
			prepare: prepareDocuments, write: writeDocuments},
		{name: "ten-tables", title: "ten tables in each", kind: kindCatchUp, unit: "transactions", amount: 10_000, least: 100,
			prepare: prepareTenTables, write: writeTenTables},
		{name: "latency", title: "latency at 50/s", kind: kindLatency, unit: "transactions", amount: 50 * latencySeconds, least: 50,
			rate: 50, prepare: prepareLatency},
		{name: "latency-1000", title: "latency at 1 000/s", kind: kindLatency, unit: "transactions", amount: 1000 * latencySeconds, least: 1000,
			rate: 1000, prepare: prepareLatency},
		{name: "backlog", title: "five minutes' mix", kind: kindCatchUp, unit: "transactions", amount: backlogFull, least: 400,
			long: true, prepare: prepareBacklog, write: writeBacklog},
		{name: "steady", title: "at half the highest rate", kind: kindSteady, unit: "seconds", amount: 60, least: 4,
			long: true, prepare: prepareSteady},
		{name: "idle", title: "idle", kind: kindIdle, unit: "seconds", amount: 60, least: 5, long: true, prepare: prepareEmpty},
		peersLine(1), peersLine(2), peersLine(4), peersLine(8),
	}
}

// runBy reports whether the rival can run the line.
func (l line) runBy(rival string) bool {
	switch rival {
	case nativeName:
		return !l.everywhere && l.kind != kindIdle
	case floorName:
		return l.kind == kindCatchUp && l.peers == 0
	case pglogicalName, bucardoName: // set up between two servers only
		return !l.third && l.peers == 0 && l.kind != kindIdle
	}
	return true
}

func lineNames() []string {
	var names []string
	for _, l := range lines() {
		names = append(names, l.name)
	}
	return names
}

// at returns how much work the line has at that scale, a multiple of what cannot be split.
func (l line) at(scale float64) int {
	return max(int(math.Round(scale*float64(l.amount)/float64(l.least)))*l.least, l.least)
}

const (
	rowsTable = "CREATE TABLE bench_rows (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)"
	// insertSQL takes the first and the last id. A row has 32 characters of text.
	insertSQL = "INSERT INTO bench_rows SELECT i, i %% 1000, md5(i::text) FROM generate_series(%d, %d) i"
)

func prepareEmpty(ctx context.Context, s *server, _ int) error { return s.exec(ctx, rowsTable) }

func prepareFilled(ctx context.Context, s *server, n int) error {
	if err := s.exec(ctx, rowsTable); err != nil {
		return err
	}
	return s.exec(ctx, fmt.Sprintf(insertSQL, 1, n))
}

// prepareRows makes room for both ends to update n rows of their own.
func prepareRows(ctx context.Context, s *server, n int) error { return prepareFilled(ctx, s, 2*n) }

// updateRows commits one transaction for each of the rows. Each end writes another value, so that a conflict that is
// decided differently shows.
func updateRows(ctx context.Context, s *server, first, last int) error {
	return s.exec(ctx, fmt.Sprintf(`DO $$ BEGIN
		SET synchronous_commit = off;
		FOR i IN %d..%d LOOP UPDATE bench_rows SET n = n + %d WHERE id = i; COMMIT; END LOOP;
		RESET synchronous_commit;
	END $$`, first, last, 1+s.place))
}

func prepareLatency(ctx context.Context, s *server, _ int) error {
	return s.exec(ctx, "CREATE TABLE bench_latency (id bigint PRIMARY KEY, note text NOT NULL)")
}

// writeInserts commits transactions of insertRows rows each.
func writeInserts(ctx context.Context, s *server, n int) error {
	for first := 1; first <= n; first += insertRows {
		if err := s.exec(ctx, fmt.Sprintf(insertSQL, first, first+insertRows-1)); err != nil {
			return err
		}
	}
	return nil
}

const (
	pgbenchClients = 4
	// pgbenchScale is pgbench's own scale at the full work: a million accounts.
	pgbenchScale = 10
	pgbenchFull  = 100_000 // transactions that go with pgbenchScale
)

// preparePgbench makes pgbench's tables. Their rows are the same on both ends; the history gets a key,
// which it lacks.
func preparePgbench(ctx context.Context, s *server, n int) error {
	scale := min(max(n*pgbenchScale/pgbenchFull, 2), pgbenchScale)
	if err := s.pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(scale)); err != nil {
		return err
	}
	return s.exec(ctx, "ALTER TABLE pgbench_history ADD COLUMN id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY")
}

// runPgbench commits n of pgbench's transactions. It does not vacuum, and does not wait for the disk at
// each commit: the work only has to be there, how fast it came is not measured.
func runPgbench(ctx context.Context, s *server, n int, args ...string) error {
	return s.pgbench(ctx, append([]string{"-n", "-M", "prepared", "-c", strconv.Itoa(pgbenchClients), "-j", "2",
		"-t", strconv.Itoa(n / pgbenchClients), "--random-seed", "1"}, args...)...)
}

// pgbench runs the machine's pgbench on the server.
func (s *server) pgbench(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.pgbenchPath, append(args, s.dsn)...)
	cmd.Env = append(os.Environ(), "PGOPTIONS=-c synchronous_commit=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run pgbench %v: %w\n%s", args, err, out)
	}
	return nil
}
