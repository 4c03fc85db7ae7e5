package capture

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestTableWatch: a table that came after Setup is published, or is a finding that names the mend; one that no
// publication may hold is another finding, and stays out of it.
func TestTableWatch(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE old (id int PRIMARY KEY)`)
		o := b.checkOptions()
		o.Tables = []string{"*.*", "!public.private"}
		conn, err := connectPlain(t.Context(), o.DSN)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		look := func(publish bool, want ...string) {
			t.Helper()
			w := NewTableWatch(o, publish, slog.New(slog.NewTextHandler(b.log, nil)))
			if err := w.look(t.Context(), conn); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range w.Findings() {
				got = append(got, fmt.Sprint(f.Code, " ", f.Thing))
			}
			if !slices.Equal(got, want) {
				t.Errorf("publish %t: found %q, want %q", publish, got, want)
			}
		}
		look(true)
		b.exec(`CREATE TABLE "new" (id int PRIMARY KEY);
CREATE TABLE keyless (x int);
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
CREATE TABLE private (id int PRIMARY KEY)`)
		unusable := []string{`table-unusable table "public"."fleeting"`, `table-unusable table "public"."keyless"`}
		look(false, append(unusable, `table-unpublished table "public"."new"`)...)
		look(true, unusable...)
		if !strings.Contains(b.log.String(), "rows that were written to it before are not") {
			t.Errorf("the log does not say that earlier rows are not replicated:\n%s", b.log)
		}
		published := `SELECT string_agg(tablename::text, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = '` + b.opts.Publication + `'`
		if got := b.db.Value(t, published); got != "new old sentinel" {
			t.Errorf("published are %s", got)
		}
		b.exec(`UPDATE keyless SET x = 1`)
		o.Running = true
		if err := Check(t.Context(), o); err != nil {
			t.Errorf("check of a capture that goes on: %v", err)
		}
		if err := Setup(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		b.exec(`UPDATE keyless SET x = 1`) // PostgreSQL refuses it for a table that is published
		look(true, unusable...)
		b.exec(`DROP PUBLICATION ` + ident(b.opts.Publication))
		look(true, `publication-missing publication "`+b.opts.Publication+`"`)
	})
}

// TestTableWatchWithoutOwnership: where the role may not publish a table, somebody who may has to.
func TestTableWatchWithoutOwnership(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.New(t), "")
	role := "role_" + b.db.Name
	b.exec(`CREATE ROLE ` + role + ` LOGIN;
CREATE TABLE t (id int PRIMARY KEY)`)
	t.Cleanup(func() { b.db.Exec(t, `DROP ROLE `+role) })
	o := b.checkOptions()
	o.DSN += "&user=" + role
	w := NewTableWatch(o, true, slog.New(slog.NewTextHandler(b.log, nil)))
	conn, err := connectPlain(t.Context(), o.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := w.look(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	f := w.Findings()
	if len(f) != 1 || f[0].Code != CodeTableUnpublished || !strings.Contains(f[0].Fault, "must be owner") ||
		!strings.Contains(f[0].Mend, `ADD TABLE "public"."t"`) {
		t.Errorf("found %v", f)
	}
}
