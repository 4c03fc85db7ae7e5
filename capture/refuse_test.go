package capture

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestReaderRefusesWrites: users of a reader are refused every statement on what is replicated, with an error that names the node;
// sessions that apply are not, nor is anybody elsewhere. Setup is idempotent, mends what somebody has changed, and takes back what
// another role needs no more.
func TestReaderRefusesWrites(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE SCHEMA IF NOT EXISTS pgbridge;
CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE private (id int PRIMARY KEY)`)
		o := b.checkOptions()
		o.Tables, o.Reader = []string{"*.*", "!public.private"}, true
		conn, err := connectPlain(t.Context(), o.DSN)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		setup := func() (n int) {
			t.Helper()
			sql, err := SetupSQL(t.Context(), o)
			if err == nil {
				err = Setup(t.Context(), o)
			}
			if err != nil {
				t.Fatal(err)
			}
			return len(sql)
		}
		found := func() string {
			t.Helper()
			var faults *CheckError
			if err := Check(t.Context(), o); err != nil && !errors.As(err, &faults) {
				t.Fatal(err)
			}
			if faults == nil {
				return ""
			}
			var all []string
			for _, f := range faults.Findings {
				all = append(all, f.Code+" "+f.Thing)
			}
			return strings.Join(all, ", ")
		}
		every := []string{`INSERT INTO t VALUES (2)`, `UPDATE t SET id = 3`, `DELETE FROM t`, `TRUNCATE t`, `INSERT INTO parted VALUES (1)`,
			`INSERT INTO parted_1 VALUES (1)`, `TRUNCATE parted`, `MERGE INTO t USING (SELECT 5 AS id) s ON t.id = s.id WHEN NOT MATCHED THEN INSERT VALUES (s.id)`}
		why := "which is a reader"
		refused := func(sql string) bool {
			t.Helper()
			_, err := conn.Exec(t.Context(), "BEGIN; SET LOCAL search_path = public; "+sql)
			if _, late := conn.Exec(t.Context(), "ROLLBACK"); late != nil {
				t.Fatal(late)
			}
			var pg *pgconn.PgError
			if err != nil && (!errors.As(err, &pg) || pg.Code != "25006" || !strings.Contains(pg.Message, "cannot be written on node "+o.Node+", "+why)) {
				t.Fatalf("%s: %v", sql, err)
			}
			return err != nil
		}
		if want := `reader-writable table "public"."parted", reader-writable table "public"."parted_1", ` +
			`reader-writable table "public"."sentinel", reader-writable table "public"."t"`; found() != want {
			t.Errorf("found %s, want %s", found(), want)
		}
		if n := setup(); n != 6 {
			t.Errorf("%d statements, want one for the publication, a function and four triggers", n)
		}
		for _, sql := range every {
			if !refused(sql) {
				t.Errorf("%s is not refused", sql)
			}
			if refused("SET LOCAL session_replication_role = replica; " + sql) {
				t.Errorf("%s is refused to apply", sql)
			}
		}
		if refused(`INSERT INTO private VALUES (1)`) {
			t.Error("a table that is not replicated cannot be written")
		}
		if n := setup(); n != 0 || found() != "" {
			t.Errorf("then %d statements, and %s", n, found())
		}

		b.exec(`ALTER TABLE t ENABLE ALWAYS TRIGGER pgbridge_reader; ALTER TABLE parted DISABLE TRIGGER pgbridge_reader; CREATE TABLE late (id int PRIMARY KEY)`)
		look := func(publish bool) (all []string) {
			t.Helper()
			w := NewTableWatch(o, publish, slog.New(slog.NewTextHandler(b.log, nil)))
			if err := w.look(t.Context(), conn); err != nil {
				t.Fatal(err)
			}
			for _, f := range w.Findings() {
				all = append(all, f.Code+" "+f.Thing)
			}
			return all
		}
		if got, want := look(false), []string{`table-unpublished table "public"."late"`, `reader-writable table "public"."late"`,
			`reader-writable table "public"."parted"`, `reader-writable table "public"."t"`}; !slices.Equal(got, want) {
			t.Errorf("found %q, want %q", got, want)
		}
		if got := look(true); len(got) > 0 || !refused(`INSERT INTO late VALUES (1)`) || refused("SET LOCAL session_replication_role = replica; "+every[0]) {
			t.Errorf("not mended: %q", got)
		}

		o.Reader, o.MayWrite, why = false, func(string, string) bool { return false }, "since topology.writers names others"
		if n := setup(); n != 5 || !refused(every[0]) {
			t.Errorf("%d statements, want five triggers with another reason", n)
		}
		o.MayWrite = nil
		if n := setup(); n != 5 {
			t.Errorf("%d statements, want five triggers to go", n)
		}
		if n := setup(); n != 0 {
			t.Errorf("then %d statements", n)
		}
		for _, sql := range every {
			if refused(sql) {
				t.Errorf("%s is refused though this is no reader any more", sql)
			}
		}

		o.MayWrite = func(schema, table string) bool { return schema != "public" || table != "parted" }
		if want := `reader-writable table "public"."parted", reader-writable table "public"."parted_1"`; found() != want {
			t.Errorf("found %s, want %s", found(), want)
		}
		if n := setup(); n != 2 || found() != "" {
			t.Errorf("%d statements, want two triggers; then %s", n, found())
		}
		for _, sql := range every {
			if refused(sql) != strings.Contains(sql, "parted") {
				t.Errorf("%s: refused is %t", sql, refused(sql))
			}
		}
		o.MayWrite = nil
		if n := setup(); n != 2 || refused(every[4]) {
			t.Errorf("%d statements, want two triggers to go", n)
		}
	})
}
