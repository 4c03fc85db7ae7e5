package integration

import (
	"fmt"
	"strings"
)

// The tests of types share one schema: for every type x
//
//	t_x: x itself and an array of it; for some types also domains over x, over the array and over a
//	     composite, a composite with fields of x, of the array and of the domain, an array of
//	     composites, one of domains
//	kv_x: x as primary key; for some also ka_x, kd_x, kc_x: an array, a domain, a composite
//
// and s_many and s_alone with a column for each type, for runs of many rows.

const bigRun = 1100 // rows; apply sends an UPDATE or DELETE run of 1000 in one statement

// dummyTypes shift the object ids of all that is created behind them.
const dummyTypes = `
CREATE TYPE dummy_enum AS ENUM ('x'); CREATE TYPE dummy_composite AS (a int); CREATE DOMAIN dummy_domain AS int;
CREATE TYPE dummy_range AS RANGE (subtype = int); CREATE TYPE dummy_enum2 AS ENUM ('x');
`

func typesSchema(all []samples) string {
	var b strings.Builder
	for _, s := range all {
		x := s.slug()
		switch {
		case s.textOnly:
			fmt.Fprintf(&b, "CREATE TABLE t_%s (id int PRIMARY KEY, v %s);\n", x, s.name)
		case !s.deep:
			fmt.Fprintf(&b, "CREATE TABLE t_%[1]s (id int PRIMARY KEY, v %[2]s, a %[2]s[]);\n", x, s.name)
		default:
			fmt.Fprintf(&b, `CREATE DOMAIN d_%[1]s AS %[2]s;
				CREATE DOMAIN da_%[1]s AS %[2]s[];
				CREATE TYPE c_%[1]s AS (p %[2]s, q %[2]s[], r d_%[1]s);
				CREATE DOMAIN dc_%[1]s AS c_%[1]s;
				CREATE TABLE t_%[1]s (id int PRIMARY KEY, v %[2]s, a %[2]s[], d d_%[1]s, c c_%[1]s, ca c_%[1]s[], da da_%[1]s, dc dc_%[1]s, ad d_%[1]s[]);
				`, x, s.name)
		}
		for _, k := range s.keys() {
			fmt.Fprintf(&b, "CREATE TABLE %s (k %s PRIMARY KEY, n int NOT NULL, id int NOT NULL);\n", k.table, k.typ)
		}
	}
	for _, alone := range []bool{false, true} {
		fmt.Fprintf(&b, "CREATE TABLE %s (id int PRIMARY KEY", map[bool]string{false: "s_many", true: "s_alone"}[alone])
		for _, s := range many(all, alone) {
			fmt.Fprintf(&b, ", v_%s %s", s.slug(), s.name)
		}
		b.WriteString(");\n")
	}
	return b.String()
}

// rows gives the samples as a relation (i, v, w): w is the value of the next row, NULL in the last.
func (s *samples) rows() string {
	var v []string
	for i, e := range s.values {
		v = append(v, fmt.Sprintf("SELECT %d AS i, (%s)::%s AS v", i+1, e, s.name))
	}
	return "(SELECT i, v, lead(v) OVER (ORDER BY i) AS w FROM (" + strings.Join(v, " UNION ALL ") + ") s) s"
}

// edgeColumns are the columns of t_x beside the key.
func (s *samples) edgeColumns() string {
	switch {
	case s.textOnly:
		return "v"
	case !s.deep:
		return "v, a"
	}
	return "v, a, d, c, ca, da, dc, ad"
}

// insertEdges fills t_x: a row for each sample, one of NULLs, one of empty arrays and composites of NULLs.
func (s *samples) insertEdges() string {
	x := s.slug()
	edges := "v"
	empty := fmt.Sprintf("INSERT INTO t_%s VALUES (100);\n", x)
	if !s.textOnly {
		edges = fmt.Sprintf("v, CASE WHEN i %% 2 = 1 THEN ARRAY[v, NULL, w] ELSE ('[2:3][-1:0]=' || ARRAY[ARRAY[v, w], ARRAY[w, NULL]]::text)::%s[] END", s.name)
		empty += fmt.Sprintf("INSERT INTO t_%s (id, a) VALUES (101, '{}');\n", x)
	}
	if s.deep {
		edges += fmt.Sprintf(`, w, ROW(v, ARRAY[w, NULL], w)::c_%[1]s,
			ARRAY[ROW(v, NULL, NULL)::c_%[1]s, NULL, ROW(NULL, '{}', w)::c_%[1]s], ('[2:3][-1:0]=' || ARRAY[ARRAY[v, w], ARRAY[w, NULL]]::text)::da_%[1]s,
			ROW(w, ARRAY[ARRAY[v]], NULL)::dc_%[1]s, ARRAY[v, NULL, w]::d_%[1]s[]`, x)
		empty += fmt.Sprintf("INSERT INTO t_%[1]s VALUES (102, NULL, '{}', NULL, ROW(NULL, NULL, NULL), '{}', '{}', ROW(NULL, '{}', NULL), '{}');\n", x)
	}
	for i, v := range s.bare {
		empty += fmt.Sprintf("INSERT INTO t_%s (id, v) VALUES (%d, %s);\n", x, -1-i, v)
	}
	return fmt.Sprintf("INSERT INTO t_%s SELECT i, %s FROM %s;\n", x, edges, s.rows()) + empty
}

// rotateEdges gives each row of t_x the values of the next one.
func (s *samples) rotateEdges() string {
	return fmt.Sprintf(`WITH n AS (SELECT COALESCE(lead(id) OVER (ORDER BY id), min(id) OVER ()) AS to_id, * FROM t_%[1]s)
		UPDATE t_%[1]s t SET (%[2]s) = (SELECT %[2]s FROM n WHERE n.to_id = t.id);
		`, s.slug(), s.edgeColumns())
}

// many are the columns of the table of many rows. Types that cannot travel in runs are in one of its own,
// where each row is a statement.
func many(all []samples, alone bool) []samples {
	var out []samples
	for _, s := range all {
		if s.alone == alone {
			out = append(out, s)
		}
	}
	return out
}

// nth is an SQL expression for one of the type's values, by a number.
func (s *samples) nth(n string) string {
	var v []string
	for _, e := range s.values {
		if len(e) < 2000 { // the largest ones would make gigabytes
			v = append(v, fmt.Sprintf("(%s)::%s", e, s.name))
		}
	}
	return fmt.Sprintf("(ARRAY[%s])[(%s) %% %d + 1]", strings.Join(v, ", "), n, len(v))
}

func eachMany(all []samples, f func(table string, cols []samples) string) string {
	return "BEGIN;\n" + f("s_many", many(all, false)) + f("s_alone", many(all, true)) + "COMMIT;\n"
}

func insertMany(all []samples) string {
	return eachMany(all, func(table string, cols []samples) string {
		var v []string
		for _, s := range cols {
			v = append(v, s.nth("g"))
		}
		return fmt.Sprintf("INSERT INTO %s SELECT g, %s FROM generate_series(1, %d) g;\n", table, strings.Join(v, ", "), bigRun)
	})
}

func updateMany(all []samples) string {
	return eachMany(all, func(table string, cols []samples) string {
		var v []string
		for _, s := range cols {
			v = append(v, fmt.Sprintf("v_%s = CASE WHEN id %% 7 <> 0 THEN %s END", s.slug(), s.nth("id + 1")))
		}
		return fmt.Sprintf("UPDATE %s SET %s;\n", table, strings.Join(v, ", "))
	})
}

func deleteMany(all []samples) string {
	return eachMany(all, func(table string, _ []samples) string {
		return fmt.Sprintf("DELETE FROM %s WHERE id %% 11 <> 0;\n", table)
	})
}

// keyTable is a table with a key made of the sample v by an SQL expression.
type keyTable struct{ table, typ, expr string }

func (s *samples) keys() []keyTable {
	if s.keyless {
		return nil
	}
	x := s.slug()
	keys := []keyTable{{"kv_" + x, s.name, "v"}}
	if s.deep {
		keys = append(keys, keyTable{"ka_" + x, s.name + "[]", "('[0:1]=' || ARRAY[v, v]::text)::" + s.name + "[]"},
			keyTable{"kd_" + x, "d_" + x, "v"},
			keyTable{"kc_" + x, "c_" + x, fmt.Sprintf("ROW(v, ARRAY[v, NULL], v)::c_%s", x)})
	}
	return keys
}

func (s *samples) eachKey(f func(table, key string) string) string {
	var b strings.Builder
	for _, k := range s.keys() {
		b.WriteString(f(k.table, k.expr))
	}
	return b.String()
}

func (s *samples) insertKeys() string {
	return s.eachKey(func(table, key string) string {
		return fmt.Sprintf("INSERT INTO %s SELECT %s, 0, i FROM %s WHERE pg_column_size(v) < 500;\n", table, key, s.rows())
	})
}

// updateByKey updates all rows in one statement, then one alone.
func (s *samples) updateByKey() string {
	return s.eachKey(func(table, _ string) string {
		return fmt.Sprintf("UPDATE %[1]s SET n = n + 1; UPDATE %[1]s SET n = n + 10 WHERE id = 2;\n", table)
	})
}

// changeKeys deletes the first row and gives its key to the second; then it deletes the rest but one.
func (s *samples) changeKeys() string {
	return s.eachKey(func(table, key string) string {
		return fmt.Sprintf("DELETE FROM %[1]s WHERE id = 1; UPDATE %[1]s SET k = (SELECT %[2]s FROM %[3]s WHERE i = 1) WHERE id = 2;\n", table, key, s.rows())
	})
}

func (s *samples) deleteByKey() string {
	return s.eachKey(func(table, _ string) string {
		return fmt.Sprintf("DELETE FROM %[1]s WHERE id > 2;\n", table)
	})
}

// typePhases are the transactions of the test in order.
func typePhases(all []samples) []phase {
	join := func(f func(*samples) string) string {
		var b strings.Builder
		b.WriteString("BEGIN;\n")
		for i := range all {
			b.WriteString(f(&all[i]))
		}
		b.WriteString("COMMIT;\n")
		return b.String()
	}
	return []phase{
		{"insert", "^t_", join((*samples).insertEdges)},
		{"update", "^t_", join((*samples).rotateEdges)},
		{"insert keys", "^k._", join((*samples).insertKeys)},
		{"update by key", "^k._", join((*samples).updateByKey)},
		{"change keys", "^k._", join((*samples).changeKeys)},
		{"delete by key", "^k._", join((*samples).deleteByKey)},
		{"insert many", "^s_", insertMany(all)},
		{"update many", "^s_", updateMany(all)},
		{"delete many", "^s_", deleteMany(all)},
	}
}
