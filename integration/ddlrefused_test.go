package integration

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestSchemaChangesAreJudgedByTheirEffects: what every node can take at once is made; what is breaking asks to be confirmed; what
// nodes would make differently, or what the keys of rows that are on their way would not survive, is refused with the mend. Nothing of
// it is left then.
func TestSchemaChangesAreJudgedByTheirEffects(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		c := cluster.New(t, cluster.Options{Nodes: 1, Majors: []int{s.Major}, Idle: true, Schema: `
			CREATE TABLE t (id int PRIMARY KEY, v text, w varchar(10), k int, n numeric(6,2)); INSERT INTO t VALUES (1, 'a'), (2, 'b');
			CREATE TABLE u (id int PRIMARY KEY, v text);
			CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)`})
		n := c.Nodes[0]
		if err := bridge.Setup(t.Context(), n.Load(), nil); err != nil {
			t.Fatal(err)
		}
		before := strings.Join(n.Query(schemaSQL), "\n")
		for _, x := range []struct{ sql, want string }{
			{`ALTER TABLE t DROP COLUMN v`, "is a breaking one: it drops column v of public.t"},
			{`ALTER TABLE t RENAME v TO vv`, "is a breaking one: it renames column v of public.t to vv"},
			{`ALTER TABLE t ADD CHECK (id > 0)`, "is a breaking one: it adds constraint t_id_check"},
			{`ALTER TABLE t ADD FOREIGN KEY (k) REFERENCES u`, "is a breaking one: it adds constraint t_k_fkey"},
			{`CREATE UNIQUE INDEX ON t (v)`, "is a breaking one: it adds unique index t_v_idx"},
			{`ALTER TABLE u ALTER v SET NOT NULL`, "is a breaking one: it sets column v of public.u NOT NULL"},
			{`ALTER TABLE u ADD x int NOT NULL`, "is a breaking one: it adds column x of public.u, which may not be NULL"},
			{`ALTER TABLE t ALTER w TYPE varchar(5)`, "it rewrites or empties public.t"},
			{`ALTER TABLE t ALTER n TYPE numeric(4,2)`, "it rewrites or empties public.t"},
			{`DROP TABLE u`, "is a breaking one: it drops table public.u"},
			{`DROP TABLE p1`, "is a breaking one: it drops table public.p1"},
			{`ALTER TABLE t ADD COLUMN x timestamptz DEFAULT now()`, "its default now() would give existing rows another value on each node; add the column without"},
			{`ALTER TABLE t ADD COLUMN x timestamptz DEFAULT CURRENT_TIMESTAMP`, "another value on each node"},
			{`ALTER TABLE t ADD COLUMN x float DEFAULT random()`, "another value on each node"},
			{`ALTER TABLE p ADD COLUMN x uuid DEFAULT gen_random_uuid()`, "another value on each node"},
			{`ALTER TABLE t ADD COLUMN x bigserial`, "another value on each node"},
			{`ALTER TABLE t ALTER k TYPE bigint`, "Run ALTER TABLE without pgbridge.ddl on each node"},
			{`ALTER TABLE p ADD COLUMN x int GENERATED ALWAYS AS (id + 1) STORED`, "it rewrites or empties public.p1"},
			{`ALTER TABLE t ADD COLUMN x int GENERATED ALWAYS AS IDENTITY`, "would number existing rows differently"},
			{`ALTER TABLE t RENAME TO tt`, "create a view of the new name"},
			{`ALTER TABLE t RENAME id TO ident`, "it changes the key of public.t"},
			{`ALTER TABLE t DROP CONSTRAINT t_pkey`, "it changes the key of public.t"},
			{`ALTER TABLE t REPLICA IDENTITY NOTHING`, "takes its replica identity away"},
			{`ALTER TABLE t ALTER v TYPE int USING 1`, "it changes the type of column v of public.t"},
			{`ALTER TABLE p DETACH PARTITION p1`, "it attaches or detaches public.p1"},
			{`TRUNCATE u; CREATE INDEX ON u (v)`, "it rewrites or empties public.u"},
			{`ALTER TABLE u ADD y int; UPDATE t SET v = 'x'`, "it writes rows of public.t"},
			{`CREATE TABLE x AS SELECT * FROM t`, "it writes rows of public.x"},
			{`UPDATE t SET v = 'x'`, "does not change the schema; Run it without pgbridge.ddl"},
			{`SELECT 1`, "does not change the schema"},
			{"\n ;", "there is no SQL to run"},
			{`nonsense`, "syntax error"},
			{`ALTER TABLE nowhere ADD x int`, `relation "nowhere" does not exist`},
			{`CREATE INDEX CONCURRENTLY ON t (v)`, "leave CONCURRENTLY out"},
			{`CREATE INDEX ON t (v); COMMIT`, "transaction commands is not implemented"},
			{strings.Repeat(" ", 256<<10) + "SELECT 1", "at most 256 KiB"},
		} {
			_, err := bridge.ChangeSchema(t.Context(), n.Load(), x.sql, bridge.SchemaOptions{})
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%.60s: %v", x.sql, err)
			}
		}
		if after := strings.Join(n.Query(schemaSQL), "\n"); after != before || n.Value(`SELECT count(*) FROM pgbridge.ddl`) != "0" {
			t.Errorf("the schema is\n%s\nit was\n%s", after, before)
		}
		for i, sql := range []string{
			`ALTER TABLE t ADD COLUMN a int DEFAULT 7; CREATE INDEX ON t (v)`,
			`ALTER TABLE t ADD COLUMN b timestamptz; ALTER TABLE t ALTER b SET DEFAULT now()`,
			`ALTER TABLE t ADD COLUMN c int NOT NULL DEFAULT length('abc')`,
			`ALTER TABLE u ADD COLUMN d int`,
			`ALTER TABLE p ADD COLUMN a text DEFAULT 'x''y'`,
			`ALTER TABLE t ALTER w TYPE varchar(20), ALTER n TYPE numeric(8,2)`,
			`CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)`,
			`CREATE TABLE f (id int PRIMARY KEY, at timestamptz DEFAULT now()); CREATE VIEW seen AS SELECT * FROM f`,
			`CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
			`ALTER TABLE u ALTER v SET DEFAULT 'x'; ALTER TABLE u ALTER v DROP DEFAULT`,
			`GRANT SELECT ON t TO PUBLIC`,
		} {
			if id, err := bridge.ChangeSchema(t.Context(), n.Load(), sql, bridge.SchemaOptions{}); err != nil || id != int64(i+1) {
				t.Errorf("%s: %d, %v", sql, id, err)
			}
		}
		want := `{"a": "7"} {"b": null} {"c": "3"} {"d": null} {"a": "x'y"}`
		if got := strings.Join(n.Query(`SELECT e -> 'added' FROM pgbridge.ddl, jsonb_array_elements(changes) e ORDER BY id`), " "); got != want {
			t.Errorf("what existing rows have in new columns: %s, want %s", got, want)
		}
		if got := n.Value(`SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE schemaname = 'public' AND tablename <> 'pgb_sentinel'`); got != "f p t u" {
			t.Errorf("published: %s", got)
		}
		all, err := bridge.SchemaChanges(t.Context(), n.Load())
		if err != nil || len(all) != 11 || all[0].Origin != "a" || all[0].Changes[0] != "adds column a of public.t" {
			t.Errorf("%+v, %v", all, err)
		}
	})
}
