package pgtest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// VersionsVariable names the environment variable that lists the major versions
// to test with.
const VersionsVariable = "PGBRIDGE_TEST_PG"

// SoakVariable names the environment variable that, set to anything, asks for the
// long version of tests that have one: make soak sets it.
const SoakVariable = "PGBRIDGE_TEST_SOAK"

// startTimeout bounds the start of a server, with initdb on a busy machine.
const startTimeout = 2 * time.Minute

// Server is one running server that the tests of a package share.
type Server struct {
	// Major is its major version.
	Major int

	cluster *pgcluster.Cluster
}

// shared holds the servers of this test binary: a variable, since the functions
// of a test binary have nothing but the package in common.
var shared struct {
	mu      sync.Mutex
	open    bool            // Main runs
	servers map[int]*Server // by major version
}

// Main runs the tests of a package, stops the servers that they shared, and
// exits with their result.
func Main(m *testing.M) {
	shared.mu.Lock()
	shared.open, shared.servers = true, map[int]*Server{}
	shared.mu.Unlock()
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func stopShared() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.open = false
	var errs []error
	for _, s := range shared.servers {
		errs = append(errs, s.cluster.Close())
	}
	return errors.Join(errs...)
}

// Versions returns the major versions that the test is to run with, in the order
// of PGBRIDGE_TEST_PG; 15 and 18, the oldest and the newest, when that is unset.
func Versions(t testing.TB) []int {
	t.Helper()
	list := os.Getenv(VersionsVariable)
	if list == "" {
		return []int{15, 18}
	}
	var majors []int
	for _, word := range strings.Split(list, ",") {
		major, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil {
			t.Fatalf("%s=%q: %q is not a major version; it is a list such as 15,18", VersionsVariable, list, word)
		}
		majors = append(majors, major)
	}
	return majors
}

// Soak says whether tests are to run in their long version.
func Soak() bool { return os.Getenv(SoakVariable) != "" }

// Long skips the test, unless tests run in their long version: others show the same on a smaller scale, or it takes more of a slow
// machine than a test run has.
func Long(t testing.TB) {
	t.Helper()
	if !Soak() {
		t.Skipf("one of the long tests: make soak RUN='^%s$'", t.Name())
	}
}

// Newest returns the highest of Versions: for a test of something that does not
// depend on the server's version.
func Newest(t testing.TB) int {
	t.Helper()
	newest := 0
	for _, major := range Versions(t) {
		newest = max(newest, major)
	}
	return newest
}

// Each runs a subtest for the oldest and the newest of Versions, with the shared server of that version, and for one of
// those between, which depends on the test's name; as a soak test for all.
func Each(t *testing.T, test func(t *testing.T, s *Server)) {
	t.Helper()
	majors := Versions(t)
	if between := majors[1:max(len(majors)-1, 1)]; len(between) > 1 && !Soak() {
		h := fnv.New32a()
		h.Write([]byte(t.Name()))
		majors = []int{majors[0], between[int(h.Sum32()%uint32(len(between)))], majors[len(majors)-1]}
	}
	for _, major := range majors {
		t.Run(fmt.Sprintf("pg%d", major), func(t *testing.T) { test(t, SharedServer(t, major)) })
	}
}

// SharedServer returns the one server of that version that the tests of this
// package share, starting it if it is the first to ask. It must not be stopped
// or set up differently: NewCluster is for that.
func SharedServer(t testing.TB, major int) *Server {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.open {
		t.Fatal("a shared server is only there below pgtest.Main; add: func TestMain(m *testing.M) { pgtest.Main(m) }")
	}
	if s := shared.servers[major]; s != nil {
		return s
	}
	c := startCluster(t, pgcluster.Options{Settings: sharedSettings}, major)
	s := &Server{Major: major, cluster: c}
	shared.servers[major] = s
	return s
}

var sharedSettings = map[string]string{
	"fsync":                 "off",
	"full_page_writes":      "off", // each database that is dropped makes a checkpoint, and each first write after it a page
	"max_connections":       "500", // many tests at once
	"max_replication_slots": "200",
	"max_wal_senders":       "200",
}

// NewServer starts a server like the shared one of that version for this test alone; it is gone at the end of the test.
func NewServer(t testing.TB, major int) *Server {
	t.Helper()
	return &Server{Major: major, cluster: NewCluster(t, major, sharedSettings)}
}

// NewCluster starts a server for this test alone, which may stop, kill and
// restart it; it is gone at the end of the test, and its log is shown if the
// test failed. settings overrides pgcluster.DefaultSettings, name by name.
func NewCluster(t testing.TB, major int, settings map[string]string) *pgcluster.Cluster {
	t.Helper()
	return NewClusterOf(t, major, pgcluster.Options{Settings: settings})
}

// NewClusterOf is NewCluster with more to say about it; Install is found.
func NewClusterOf(t testing.TB, major int, o pgcluster.Options) *pgcluster.Cluster {
	t.Helper()
	c := startCluster(t, o, major)
	closeAtEnd(t, c)
	return c
}

// NewStandby starts a physical standby of a cluster, for this test alone: pgcluster.StartStandby.
func NewStandby(t testing.TB, primary *pgcluster.Cluster, slot string, settings map[string]string) *pgcluster.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := pgcluster.StartStandby(ctx, primary, slot, "postgres", pgcluster.Options{Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, c)
	return c
}

// closeAtEnd stops the server at the end of the test, and shows its log if that has failed.
func closeAtEnd(t testing.TB, c *pgcluster.Cluster) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of PostgreSQL %d on port %d ends with\n%s", c.Install().Major, c.Port(), c.LogTail())
		}
		if err := c.Close(); err != nil {
			t.Errorf("stop PostgreSQL %d: %v", c.Install().Major, err)
		}
	})
}

func startCluster(t testing.TB, o pgcluster.Options, major int) *pgcluster.Cluster {
	t.Helper()
	var err error
	if o.Install, err = pgcluster.Find(major); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := pgcluster.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Program returns the path of a client program of PostgreSQL, such as pgbench or
// psql, which the cached servers come without. It fails the test when the
// program is not there.
func Program(t testing.TB, name string) string {
	t.Helper()
	for _, in := range pgcluster.Installed() {
		path := filepath.Join(in.BinDir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("find %s: %v; install PostgreSQL's client programs (Debian: postgresql-15, postgresql-contrib)", name, err)
	}
	return path
}
