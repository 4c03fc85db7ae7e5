package demo

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// account keeps what the demonstration says, and calls on as soon as it has said something that matches.
type account struct {
	mu    sync.Mutex
	text  strings.Builder
	match string
	on    func(text string) // called once, by the demonstration's own goroutine, which waits for it
}

func (a *account) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.text.Write(b)
	if a.on != nil && strings.Contains(a.text.String(), a.match) {
		on := a.on
		a.on = nil
		on(a.text.String())
	}
	return len(b), nil
}

// run plays a demonstration in a directory for temporary files of its own, and requires that nothing of it is left.
func run(t *testing.T, ctx context.Context, o Options, a *account) error {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo") // t.TempDir is closed to the user that runs PostgreSQL
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	o.Out = a
	err = Run(ctx, o)
	t.Logf("%s", a.text.String())
	left, errRead := os.ReadDir(dir)
	if errRead != nil || len(left) > 0 {
		t.Errorf("left in the directory for temporary files: %v, %v", left, errRead)
	}
	for _, m := range regexp.MustCompile(`pid (\d+)`).FindAllStringSubmatch(a.text.String(), -1) {
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("bridge %d is left: %v", pid, err)
		}
	}
	return err
}

// TestDemo plays the whole script, and lets somebody press Ctrl-C when all is kept.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := &account{match: "Ctrl-C ends everything", on: func(string) { cancel() }}
	if err := run(t, ctx, Options{Duration: 5 * time.Second, Keep: true, Executable: cluster.Binary(t)}, a); err != nil {
		t.Fatal(err)
	}
	requireLines(t, a.text.String(),
		`3 PostgreSQL clusters`, `a mesh of 6 links`, `the first 1,001 rows, inserted on a, stand on all nodes`,
		`time \| a: commits applied     lag \| b: .* \| c: .*`,
		`later every node shows (Paris|Tokyo)\.`, `lost, and is kept in pgbridge.conflict`,
		`on a: update_update of shop.accounts, (local|remote) wins`, `on b: update_update of shop.accounts, (local|remote) wins`,
		`SIGKILL for the bridge of c, pid \d+`, `[\d.]+ m?s \|.* killed\n`, `c's own sessions committed [1-9]`, `Waiting: [1-9].* transactions of c for the others`,
		`every node had all of it`,
		`shop\.accounts .*  same    same`, `shop\.order_lines .*  same    same`, `shop\.notes .*  same    same`,
		`Every row of every table is the same on all 3 nodes`, `psql 'postgres://`, `status --config /`)
}

func requireLines(t *testing.T, text string, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		if !regexp.MustCompile(pattern).MatchString(text) {
			t.Errorf("no line says %s", pattern)
		}
	}
}

// TestDataCentreIsLost: the center of a star, for good; the others find each other.
func TestDataCentreIsLost(t *testing.T) {
	a := &account{}
	o := Options{Scenario: Datacenters, Topology: "star", Nodes: 4, Duration: 2 * time.Second, Executable: cluster.Binary(t)}
	if err := run(t, t.Context(), o, a); err != nil {
		t.Fatal(err)
	}
	requireLines(t, a.text.String(), `a star of 6 links`, `SIGKILL for the bridge of a, pid \d+, and for its PostgreSQL, pid \d+`,
		`[\d.]+ m?s after that, what each of the others wrote was on all of them`, `on b +on c +on d\n`,
		`All others have the same [\d,]+ transactions of a; \d+ that its own users had seen committed had not left it`,
		`Every row of every table is the same on all 3 nodes`)
}

// TestDevicesMeet: what three devices did to one calendar offline becomes one calendar, and the rest is for somebody to decide.
func TestDevicesMeet(t *testing.T) {
	a := &account{}
	if err := run(t, t.Context(), Options{Scenario: Offline, Executable: cluster.Binary(t)}, a); err != nil {
		t.Fatal(err)
	}
	before, after, _ := strings.Cut(a.text.String(), "The inbox")
	requireLines(t, before, `a star of 6 links`, `laptop: PostgreSQL on [\d.:]+, NATS on no address`, `stands in its own stream`, `12:30  Lunch +guests: (Ada, Bob|Bob, Ada) +notes: vegan at the Ponte, bring cake`, `14:30  Dentist`,
		`16:00  Review   Blue`, `18:00  Swim`)
	requireLines(t, after, `undecided  phone   laptop`, `\$ pgbridge conflicts undo \d+`, `10:00  Dentist`,
		`Every row of every table is the same on all 4 nodes`)
}

// TestPlantedFaultsAreFound changes one node behind pgbridge's back: in a session with a replication
// origin, whose changes a bridge takes for another node's. On the other node it commits what the
// demonstration has not counted.
func TestPlantedFaultsAreFound(t *testing.T) {
	a := &account{match: "had arrived everywhere", on: func(text string) {
		commit(t, dsn(t, text, "a"), `INSERT INTO shop.notes VALUES (gen_random_uuid(), 'a stranger', 'uncounted')`)
		commit(t, dsn(t, text, "b"),
			`SELECT pg_replication_origin_create('planted')`,
			`SELECT pg_replication_origin_session_setup('planted')`,
			`UPDATE shop.accounts SET owner = 'planted' WHERE owner = 'shared 1'`,
			`DELETE FROM shop.order_lines WHERE (order_id, line) = (SELECT order_id, line FROM shop.order_lines ORDER BY 1 LIMIT 1)`)
	}}
	err := run(t, t.Context(), Options{Nodes: 2, Duration: time.Second, Executable: cluster.Binary(t)}, a)
	var found *FoundError
	if !errors.As(err, &found) || found.ExitCode() != 3 {
		t.Fatalf("got %v, want a FoundError", err)
	}
	requireLines(t, strings.Join(found.Faults, "\n"), `(?s)^shop.accounts differs between a and b
shop.order_lines differs between a and b
b applied [0-9,]+ transactions of a, which committed [0-9,]+
1 orders were seen without their account or some of their lines$`)
	requireLines(t, a.text.String(), `shop\.accounts .* DIFFERS`, `shop\.orders .* same`, `shop\.notes .* same`,
		`only on a: .*"owner": "shared 1"`, `only on b: .*"owner": "planted"`, `NOT EQUAL`)
}

// dsn finds a node's address in what the demonstration has said.
func dsn(t *testing.T, text, node string) string {
	m := regexp.MustCompile(node + `: PostgreSQL on (127\.0\.0\.1:\d+)`).FindStringSubmatch(text)
	if m == nil {
		t.Errorf("the address of node %s is not told", node)
		return ""
	}
	return "postgres://postgres@" + m[1] + "/shop?sslmode=disable"
}

func commit(t *testing.T, dsn string, statements ...string) {
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(t.Context())
	for _, sql := range statements {
		if tag, err := conn.Exec(t.Context(), sql); err != nil || tag.RowsAffected() != 1 {
			t.Errorf("%s: %s, %v", sql, tag, err)
		}
	}
}

// TestInterruptLeavesNothing: Ctrl-C in the middle of it.
func TestInterruptLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := &account{match: "Everybody writes", on: func(string) { cancel() }}
	err := run(t, ctx, Options{Nodes: 2, Duration: time.Minute, Executable: cluster.Binary(t)}, a)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that the context was cancelled", err)
	}
}

// TestBridgeThatEndsIsTold: a program that is no bridge.
func TestBridgeThatEndsIsTold(t *testing.T) {
	a := &account{}
	err := run(t, t.Context(), Options{Nodes: 2, Executable: "/bin/false"}, a)
	if err == nil || !strings.Contains(err.Error(), "ended by itself: exit status 1") {
		t.Errorf("got %v, want how the bridge ended", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Nodes: 1}, "demonstration with 1 nodes: use 2 to 9"},
		{Options{Nodes: 10}, "demonstration with 10 nodes: use 2 to 9"},
		{Options{Scenario: "opera"}, `demonstration "opera": use one of tour, datacenters, offline, editor`},
		{Options{Topology: "star"}, `topology "star": use one of ring, star, mesh, with the scenario datacenters`},
		{Options{Scenario: Datacenters, Topology: "line"}, `topology "line": use one of ring, star, mesh, with the scenario datacenters`},
		{Options{Scenario: Datacenters, Nodes: 2}, "demonstration with 2 nodes: use 3 to 9"},
		{Options{Scenario: Offline, Nodes: 3}, "demonstration with 3 nodes: the scenario offline has 4"},
		{Options{Duration: time.Millisecond}, "demonstration of 1ms: use 1s to 1h0m0s"},
	} {
		if err := Run(t.Context(), c.o); err == nil || err.Error() != c.want {
			t.Errorf("%+v: %v, want %s", c.o, err, c.want)
		}
	}
}

// TestNoPostgresIsTold: with nothing installed, the error names the mend.
func TestNoPostgresIsTold(t *testing.T) {
	if matches, err := os.ReadDir("/usr/lib/postgresql"); err == nil && len(matches) > 0 {
		t.Skip("a PostgreSQL of the system's packages is always found")
	}
	t.Setenv("PGBRIDGE_PG_CACHE", t.TempDir())
	t.Setenv("PATH", "")
	if err := Run(t.Context(), Options{}); !errors.Is(err, ErrNoPostgres) {
		t.Errorf("got %v", err)
	}
}
