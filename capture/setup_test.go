package capture

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		patterns []string
		yes, no  []TableName
	}{
		{nil, []TableName{{"public", "t"}, {"app", "x.y"}}, nil},
		{[]string{"public.*"}, []TableName{{"public", "t"}, {"public", "a.b"}}, []TableName{{"publics", "t"}}},
		{[]string{"*.*", "!public.audit"}, []TableName{{"public", "t"}, {"app", "audit"}}, []TableName{{"public", "audit"}}},
		{[]string{"!*.log_*"}, []TableName{{"public", "t"}}, []TableName{{"app", "log_1"}, {"app", "log_"}}},
		{[]string{"!app.t", "app.*"}, []TableName{{"app", "u"}}, []TableName{{"app", "t"}}},
		{[]string{"app.t?"}, []TableName{{"app", "t1"}, {"app", "tä"}}, []TableName{{"app", "t"}, {"app", "t12"}}},
		{[]string{"app.*_*_x"}, []TableName{{"app", "a_b_x"}, {"app", "a__x_x"}}, []TableName{{"app", "a_x"}, {"app", "a_b_xy"}}},
		{[]string{"app.T"}, nil, []TableName{{"app", "t"}}},
		{[]string{"Ä*.t"}, []TableName{{"Äpp", "t"}}, []TableName{{"App", "t"}}},
	} {
		p, err := parsePatterns(c.patterns)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range c.yes {
			if !p.match(n) {
				t.Errorf("%q does not match %v", c.patterns, n)
			}
		}
		for _, n := range c.no {
			if p.match(n) {
				t.Errorf("%q matches %v", c.patterns, n)
			}
		}
	}
	for _, bad := range []string{"items", "!items", ".t", "app.", ""} {
		if _, err := parsePatterns([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestSetupSQL is the golden test of what a DBA would run.
func TestSetupSQL(t *testing.T) {
	pub := func(p publication, want ...TableName) []string { p.name = "pgb_x_a"; return publicationSQL(&p, want) }
	a, b := TableName{"public", "a"}, TableName{"app", `q"b`}
	of := func(names ...TableName) (list []publishedTable) {
		for _, n := range names {
			list = append(list, publishedTable{TableName: n})
		}
		return list
	}
	right := publication{exists: true, ops: true, viaRoot: true, tables: of(a, b)}
	for _, c := range []struct {
		got  []string
		want string
	}{
		{pub(publication{}, a, b), `CREATE PUBLICATION "pgb_x_a" FOR TABLE "public"."a", "app"."q""b" WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)`},
		{pub(publication{}), `CREATE PUBLICATION "pgb_x_a" WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)`},
		{pub(right, b, a), ``},
		{pub(right, a), `ALTER PUBLICATION "pgb_x_a" SET TABLE "public"."a"`},
		{pub(right), `ALTER PUBLICATION "pgb_x_a" DROP TABLE "public"."a", "app"."q""b"`},
		{pub(publication{exists: true, ops: true, viaRoot: true, tables: []publishedTable{{a, true}}}, a), `ALTER PUBLICATION "pgb_x_a" SET TABLE "public"."a"`},
		{pub(publication{exists: true, ops: false, viaRoot: true, tables: of(a)}, a), `ALTER PUBLICATION "pgb_x_a" SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)`},
		{pub(publication{exists: true, all: true, ops: true, viaRoot: true}, a), `DROP PUBLICATION "pgb_x_a"; CREATE PUBLICATION "pgb_x_a" FOR TABLE "public"."a" WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)`},
		{[]string{slotCreationSQL("pgb_x_a", 150000)}, `SELECT pg_create_logical_replication_slot('pgb_x_a', 'pgoutput', false, false)`},
		{[]string{slotCreationSQL("pgb_x_a", 170000)}, `SELECT pg_create_logical_replication_slot('pgb_x_a', 'pgoutput', false, false, true)`},
		{[]string{startSQL("s", `p"q`, 0x1_0000_0010, 150000, false)}, `START_REPLICATION SLOT "s" LOGICAL 1/10 (proto_version '3', publication_names '"p""q"', binary 'true', messages 'true', streaming 'on')`},
		{[]string{startSQL("s", "p", 0, 180000, false)}, `START_REPLICATION SLOT "s" LOGICAL 0/0 (proto_version '4', publication_names '"p"', binary 'true', messages 'true', streaming 'on', origin 'none')`},
		{[]string{startSQL("s", "p", 0, 180000, true)}, `START_REPLICATION SLOT "s" LOGICAL 0/0 (proto_version '4', publication_names '"p"', binary 'true', messages 'true', streaming 'on')`},
	} {
		if got := strings.Join(c.got, "\n"); got != c.want {
			t.Errorf("got\n%s\nwant\n%s", got, c.want)
		}
	}
}

// TestSetupIsIdempotent: a second run changes nothing, and one after a change of the patterns or the tables
// corrects the publication, while the slot stays.
func TestSetupIsIdempotent(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		db := s.NewDatabase(t)
		db.Exec(t, `CREATE SCHEMA app; CREATE SCHEMA pgbridge; CREATE TABLE pgbridge.own (id int PRIMARY KEY);
			CREATE TABLE app.t (id int PRIMARY KEY); CREATE TABLE public.t (id int PRIMARY KEY); CREATE TABLE public.audit (id int PRIMARY KEY);
			CREATE UNLOGGED TABLE public.u (id int PRIMARY KEY); CREATE VIEW public.v AS SELECT 1;
			CREATE TABLE public.p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE public.p1 PARTITION OF p FOR VALUES FROM (1) TO (9)`)
		o := SetupOptions{DSN: db.DSN, Cluster: db.Name, Node: "a", Tables: []string{"*.*", "!public.audit"}}
		setup := func(wantStatements int, wantTables string) {
			t.Helper()
			sql, err := SetupSQL(t.Context(), o)
			if err != nil || len(sql) != wantStatements {
				t.Errorf("%d statements: %q, %v", len(sql), sql, err)
			}
			if err := Setup(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(db.Query(t, `SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1`, originPrefix(db.Name, "a")), " ")
			if got != wantTables {
				t.Errorf("published are %q, want %q", got, wantTables)
			}
		}
		setup(2, "app.t public.p public.t")
		setup(0, "app.t public.p public.t")
		o.Tables = []string{"app.*"}
		setup(1, "app.t")
		db.Exec(t, `CREATE TABLE app.new (id int PRIMARY KEY)`)
		setup(1, "app.new app.t")
		o.Tables = []string{"nothing.*"}
		setup(1, "")
		setup(0, "")
		name := ident(originPrefix(db.Name, "a"))
		db.Exec(t, `DROP PUBLICATION `+name)
		db.Exec(t, `CREATE PUBLICATION `+name+` FOR TABLES IN SCHEMA app`)
		o.Tables = []string{"public.t"}
		setup(1, "public.t")
		setup(0, "public.t")
		if n := db.Value(t, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); n != "1" {
			t.Errorf("%s slots", n)
		}
		if s.Major >= 17 {
			if f := db.Value(t, `SELECT failover FROM pg_replication_slots WHERE database = current_database()`); f != "t" {
				t.Error("the slot is not one for a failover")
			}
		}
	})
}

// TestSetupWaitsForTransactions: the creation of a slot waits for a transaction in another database for longer than for any other lock,
// and tells who that is.
func TestSetupWaitsForTransactions(t *testing.T) {
	t.Parallel()
	s := pgtest.SharedServer(t, pgtest.Newest(t))
	db, other := s.NewDatabase(t), pgtest.Connect(t, s.NewDatabase(t).DSN)
	if _, err := other.Exec(t.Context(), `BEGIN; SELECT pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	open := fmt.Sprintf("process %d, of user", other.PgConn().PID())
	told, done := make(chan string, 10), make(chan error, 1)
	o := SetupOptions{DSN: db.DSN, Cluster: db.Name, Node: "a", Tables: []string{"*.*"}, Waits: func(text string) { told <- text }}
	go func() { done <- Setup(t.Context(), o) }()
	for text := ""; !strings.Contains(text, open); { // or for another test's, first
		select {
		case text = <-told:
		case err := <-done:
			t.Fatalf("Setup returns %v without a word of %q", err, open)
		}
	}
	for db.Value(t, `SELECT coalesce(bool_or(clock_timestamp() - query_start > '11s'), false) FROM pg_stat_activity
		WHERE datname = current_database() AND starts_with(query, 'SELECT pg_create_logical_replication_slot')`) != "t" {
		select {
		case err := <-done:
			t.Fatalf("Setup returns %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	if _, err := other.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSetupNeverReplacesWhatHeldChanges: a slot or publication that was dropped under a node that has captured is
// not made anew, since what was committed meanwhile would be in neither slot nor stream.
func TestSetupNeverReplacesWhatHeldChanges(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	o := SetupOptions{DSN: db.DSN, Cluster: db.Name, Node: "a"}
	db.Exec(t, `CREATE PUBLICATION `+ident(originPrefix(db.Name, "a")))
	o.HasRun = true
	var check *CheckError
	if err := Setup(t.Context(), o); !errors.As(err, &check) || !check.Has(CodeSlotMissing) {
		t.Errorf("setup of a node that has run: %v", err)
	}
	if n := db.Value(t, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); n != "0" {
		t.Errorf("%s slots", n)
	}
	if err := CheckServer(t.Context(), o); err != nil {
		t.Errorf("check of the server alone found %v", err)
	}
	o.HasRun = false
	if err := Setup(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	o.HasRun = true
	if err := Setup(t.Context(), o); err != nil {
		t.Errorf("setup of a node that has run and has its slot: %v", err)
	}
	db.Exec(t, `DROP PUBLICATION `+ident(originPrefix(db.Name, "a")))
	if err := Setup(t.Context(), o); !errors.As(err, &check) || !check.Has(CodePublicationMissing) {
		t.Errorf("setup of a node whose publication was dropped: %v", err)
	}
}

// TestCheckFindings: each fault has its code, names its thing and its mend.
func TestCheckFindings(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE good (id int PRIMARY KEY);
			CREATE TABLE by_full (id int NOT NULL UNIQUE); ALTER TABLE by_full REPLICA IDENTITY FULL`)
		o := b.checkOptions()
		if err := Check(t.Context(), o); err != nil {
			t.Fatalf("nothing is wrong: %v", err)
		}
		found := func(code string, texts ...string) {
			t.Helper()
			var check *CheckError
			if err := Check(t.Context(), o); !errors.As(err, &check) {
				t.Fatalf("check found %v", err)
			}
			i := slices.IndexFunc(check.Findings, func(f Finding) bool {
				return f.Code == code && !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(f.Error(), s) })
			})
			if i < 0 {
				t.Errorf("no %s with %q among\n%v", code, texts, check)
			}
		}
		b.exec(`CREATE TABLE late (id int PRIMARY KEY);
CREATE TABLE keyless (x int);
CREATE TABLE only_unique (x int NOT NULL UNIQUE);
CREATE TABLE deferred (x int PRIMARY KEY DEFERRABLE);
CREATE TABLE nullable (x int UNIQUE);
CREATE TABLE unhashed (id int, q tsquery, PRIMARY KEY (id, q));
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
ALTER TABLE good REPLICA IDENTITY NOTHING`)
		found(CodeTableKey, `"public"."keyless"`, "ADD PRIMARY KEY", `"!public.keyless"`)
		found(CodeTableKey, `"public"."only_unique"`, "REPLICA IDENTITY USING INDEX")
		found(CodeTableKey, `"public"."deferred"`)
		found(CodeTableKey, `"public"."nullable"`)
		found(CodeTableKey, `"public"."good"`, "no replica identity")
		found(CodeTableKey, `"public"."unhashed"`, `column "q"`, "type pg_catalog.tsquery", "give the table a key of another type", `"!public.unhashed"`)
		found(CodeTableUnlogged, `"public"."unlogged"`, "SET LOGGED")
		found(CodePublication, `leaves out "public"."late";`, "pgbridge setup")
		name := ident(b.opts.Publication)
		b.exec(`ALTER PUBLICATION ` + name + ` SET (publish = 'insert', publish_via_partition_root = false)`)
		found(CodePublication, "all operations")
		b.exec(`ALTER PUBLICATION ` + name + ` SET TABLE by_full WHERE (id > 5)`)
		found(CodePublication, `leaves out rows or columns of "public"."by_full"`)
		b.exec(`DROP PUBLICATION ` + name)
		found(CodePublicationMissing, "pgbridge setup")
		b.exec(`SELECT pg_drop_replication_slot('` + b.opts.Slot + `')`)
		found(CodeSlotMissing, b.opts.Slot)
	})
}

// TestCheckServerSettings: what only a restart mends.
func TestCheckServerSettings(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t, pgtest.Newest(t), map[string]string{
		"wal_level": "replica", "track_commit_timestamp": "off", "max_replication_slots": "1", "max_wal_senders": "0"})
	dsn := cluster.SocketDSN("postgres")
	pgtest.Exec(t, dsn, `SELECT pg_create_physical_replication_slot('taken')`)
	o := CheckOptions{DSN: dsn, Cluster: "x", Node: "a"}
	var check *CheckError
	if err := Check(t.Context(), o); !errors.As(err, &check) {
		t.Fatal(err)
	}
	for _, code := range []string{CodeWALLevel, CodeCommitTimestamp, CodeSlots, CodeWALSenders, CodePublicationMissing, CodeSlotMissing} {
		if !check.Has(code) {
			t.Errorf("no %s among\n%v", code, check)
		}
	}
}

// TestUnprivilegedRole: a role that may not replicate is told so; one that may needs no superuser to run.
func TestUnprivilegedRole(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY)`)
		role := "role_" + b.db.Name
		b.exec(`CREATE ROLE ` + role + ` LOGIN PASSWORD 'geheim'`)
		t.Cleanup(func() { b.db.Exec(t, `DROP ROLE `+role) })
		b.opts.DSN = b.db.DSN + "&user=" + role
		if !strings.Contains(b.db.DSN, "?") {
			t.Fatalf("cannot give %s another user", b.db.DSN)
		}
		o := b.checkOptions()
		o.DSN = b.opts.DSN
		var check *CheckError
		if err := Check(t.Context(), o); !errors.As(err, &check) || !check.Has(CodePrivilege) || !strings.Contains(err.Error(), role) {
			t.Errorf("check found %v", err)
		}
		c, err := New(b.opts, b.pub, b.deletes, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.fails(c); !errors.As(err, &check) || !check.Has(CodePrivilege) && !check.Has(CodeConnect) {
			t.Errorf("run ended with %v", err)
		}
		b.exec(`ALTER ROLE ` + role + ` REPLICATION`)
		if err := Check(t.Context(), o); err != nil {
			t.Errorf("check found %v", err)
		}
		if _, err := readSlotOf(t, o.DSN, b.opts.Slot); err != nil {
			t.Error(err)
		}
		b.start(nil)
		b.exec(`INSERT INTO t VALUES (1);
DELETE FROM t`)
		b.sentinel()
		b.end()
	})
}

// TestUnreachable: a wrong DSN gives one clear error, never the password.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for name, dsn := range map[string]string{
		"no server":   "postgres://u:geheim@127.0.0.1:1/db",
		"no host":     "postgres://u:geheim@host.invalid/db",
		"no url":      "postgres://u:geheim@[/db",
		"no port":     "postgres://u:geheim@127.0.0.1:port/db",
		"key values":  "host=127.0.0.1 port=1 user=u password=geheim dbname=x sslmode=never",
		"no database": strings.Replace(db.DSN, db.Name, "nowhere_"+db.Name, 1),
	} {
		for what, err := range map[string]error{
			"check": Check(t.Context(), CheckOptions{DSN: dsn, Cluster: "x", Node: "a"}),
			"setup": Setup(t.Context(), SetupOptions{DSN: dsn, Cluster: "x", Node: "a"}),
		} {
			var check *CheckError
			if !errors.As(err, &check) || len(check.Findings) != 1 || !check.Has(CodeUnreachable) && !check.Has(CodeConnect) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			if strings.Contains(fmt.Sprint(err), "geheim") {
				t.Errorf("%s, %s: the error tells the password: %v", name, what, err)
			}
		}
	}
}

// TestSetupForFailover: a slot that was made without becomes one that standbys have, too; before 17 there is none.
func TestSetupForFailover(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		db := s.NewDatabase(t)
		o := SetupOptions{DSN: db.DSN, Cluster: db.Name, Node: "a", Failover: true}
		name := originPrefix(db.Name, "a")
		if s.Major < 17 {
			for _, err := range []error{Setup(t.Context(), o), Check(t.Context(), o)} {
				var found *CheckError
				if !errors.As(err, &found) || !found.Has(CodeFailover) {
					t.Errorf("%v; want finding %s", err, CodeFailover)
				}
			}
			return
		}
		db.Exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, name)
		sql, err := SetupSQL(t.Context(), o)
		if err != nil || !strings.Contains(strings.Join(sql, "\n"), fmt.Sprintf(`ALTER_REPLICATION_SLOT "%s" (FAILOVER true)`, name)) {
			t.Errorf("a person is told %q, %v", sql, err)
		}
		for range 2 {
			if err := Setup(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			if f := db.Value(t, `SELECT failover FROM pg_replication_slots WHERE slot_name = $1`, name); f != "t" {
				t.Error("the slot is not one for a failover")
			}
		}
		if sql, err := SetupSQL(t.Context(), o); len(sql) != 0 || err != nil {
			t.Errorf("then %q, %v", sql, err)
		}
	})
}
