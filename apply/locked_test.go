package apply

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// lockWaits reports whether a user waits for a lock of a table.
func lockWaits(t *testing.T, db *pgtest.Database) bool {
	return db.Value(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = '' AND wait_event_type = 'Lock'`) == "1"
}

// firstWrite calls f once, when something is written first.
type firstWrite struct {
	bytes.Buffer
	f func()
}

func (w *firstWrite) Write(b []byte) (int, error) {
	if w.f != nil {
		w.f()
		w.f = nil
	}
	return w.Buffer.Write(b)
}

// TestCopyGivesWayToSchemaChange: a schema change waits for a page that is being copied, and the page must then read the catalog, which
// waits for the schema change.
func TestCopyGivesWayToSchemaChange(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	p.do(`INSERT INTO t SELECT i, 'v' FROM generate_series(1, 10) i`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	w := &firstWrite{f: func() {
		conn := p.to.Connect(t)
		go func() {
			_, err := conn.Exec(ctx, "ALTER TABLE t ADD COLUMN n int")
			done <- err
		}()
		awaitTrue(t, func() bool { return lockWaits(t, p.to) })
	}}
	page := CopyPage{Schema: "public", Name: "t", Columns: []string{"id", "v"}, Rows: 100}
	if _, err := p.a.CopyPage(ctx, "", page, p.seen(), w); !hasCode(err, "55P03") {
		t.Errorf("the page ends with %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("the schema change ends with %v", err)
	}
	if end, err := p.a.CopyPage(ctx, "", page, p.seen(), &w.Buffer); err != nil || end.Rows != 10 {
		t.Errorf("then it ends with %+v, %v", end, err)
	}
}

// TestSchemaChangeIsNotAnothers: a schema change waits for a table that another one has just changed, and that change does not count as
// part of it (seed 457072 of TestSchemaChangesAtRandom).
func TestSchemaChangeIsNotAnothers(t *testing.T) {
	db := pgtest.New(t)
	if err := Setup(t.Context(), pgtest.Connect(t, db.DSN), SetupOptions{Cluster: "c", Node: "a"}); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, u int, v int); CREATE PUBLICATION pgb_c_a FOR TABLE t`)
	first, second := db.Connect(t), db.Connect(t)
	const breaking = `SELECT pgbridge.ddl('ALTER TABLE t RENAME u TO w; ALTER TABLE t DROP v', true)`
	if _, err := first.Exec(t.Context(), "BEGIN; "+breaking); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := second.Exec(t.Context(), `SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN n int')`)
		done <- err
	}()
	awaitTrue(t, func() bool { return lockWaits(t, db) })
	if _, err := first.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("the second change: %v", err)
	}
	if got := db.Value(t, `SELECT summary::text FROM pgbridge.ddl ORDER BY id DESC LIMIT 1`); got != `{"adds column n of public.t"}` {
		t.Errorf("the second change is %s", got)
	}
}
