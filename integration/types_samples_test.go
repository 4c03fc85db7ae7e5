package integration

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// samples is one type that a column can have, with values of it at the edges.
type samples struct {
	name   string   // as SQL spells it
	values []string // SQL expressions that give the type or can be cast to it; at least two
	// keyless: the type has no btree order, or no hash, and cannot be a key.
	keyless bool
	// textOnly: the server has no binary output for the type, so that there can be no arrays and no
	// composites of it in a table that is decoded in binary.
	textOnly bool
	// alone: values cannot travel in runs, for they are arrays or composites.
	alone bool
	// deep: there are key tables of arrays, domains and composites of it. How such a thing is a key does
	// not depend on what is in it, so that not every type needs them.
	deep bool
	// bare are values that the server gives out in binary and does not take back: they may only stand in a
	// column of their own, where apply sends them as text.
	bare []string
}

func (s *samples) slug() string {
	return strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.TrimPrefix(s.name, "pg_catalog."), "_"), "_")
}

// builtIn names a type of pg_catalog without a modifier, whatever SQL makes of the bare name.
func builtIn(name string, values ...string) samples {
	return samples{name: fmt.Sprintf("pg_catalog.%q", name), values: values}
}

func keyless(s samples) samples { s.keyless = true; return s }

func alone(s samples) samples { s.alone = true; return s }

func deep(s samples) samples { s.deep = true; return s }

func (s samples) andBare(values ...string) samples { s.bare = values; return s }

// literals quotes values of types whose input functions take them as they stand.
func literals(values ...string) []string {
	for i, v := range values {
		values[i] = "'" + strings.ReplaceAll(v, "'", "''") + "'"
	}
	return values
}

// leftOut are the scalar types of pg_catalog that no table of a user can hold or that no value can be
// made of: the types of extended statistics and of index summaries, of which the server gives out values
// but takes none in ("cannot accept a value of type ..."); native logical replication cannot carry them
// either. Pseudo-types (typtype p) and the row types of the catalogs (typtype c) are not scalar.
var leftOut = []string{
	"pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "pg_brin_bloom_summary",
	"pg_brin_minmax_multi_summary", "gtsvector",
}

func builtInSamples(major int) []samples {
	all := append(scalarSamples(major), modifiedSamples()...)
	all = append(all, rangeSamples()...)
	return all
}

const unicodeText = `'Zoë 😀 日本語 e' || U&'\0301' || ' ''"\' || U&'\FEFF'`

func scalarSamples(major int) []samples {
	interval := literals("0", "178000000 years", "-178000000 years", "-178956970 years -8 months -2147483647 days",
		"178956970 years 6 months 2147483647 days", "1 mon -1 day 00:00:00.000001",
		"2562047788:00:54.775807", "-2562047788:00:54.775807")
	if major >= 17 {
		interval = append(interval, literals("infinity", "-infinity")...)
	}
	s := []samples{
		builtIn("bool", "true", "false"),
		deep(builtIn("bytea", `'\x'`, `'\x00'`, `'\x0001ff005c2700'`, `decode(repeat('00ff', 400), 'hex')`)),
		builtIn("char", `'a'`, `''`, `(-56)::"char"`, `'~'`),
		builtIn("name", `''`, `'pg "name"'`, unicodeText, `repeat('n', 63)`),
		builtIn("int8", literals("0", "-1", "9223372036854775807", "-9223372036854775808")...),
		builtIn("int2", literals("0", "-1", "32767", "-32768")...),
		alone(keyless(builtIn("int2vector", literals("1 -2 32767", "7")...).andBare("''"))),
		deep(builtIn("int4", literals("0", "-1", "2147483647", "-2147483648")...)),
		builtIn("regproc", literals("-", "pg_catalog.int4in", "pg_catalog.array_send")...),
		deep(builtIn("text", `''`, `'a'`, `' a '`, unicodeText, `E'\x01\n\t\\'`, `repeat('€', 600)`)),
		builtIn("oid", literals("0", "1", "4294967295")...),
		builtIn("tid", literals("(0,0)", "(1,1)", "(4294967295,65535)")...),
		keyless(builtIn("xid", literals("0", "3", "4294967295")...)),
		keyless(builtIn("cid", literals("0", "3", "4294967295")...)),
		alone(deep(builtIn("oidvector", literals("1 2 4294967295", "7")...).andBare("''"))),
		keyless(builtIn("json", `'{"a" : 1, "a": 2.00}'`, `' null'`, `'"\u00e9\ud83d\ude00"'`, `(repeat('[', 900) || repeat(']', 900))`)),
		keyless(builtIn("xml", `'<a>é</a>'`, `xmlparse(content 'text <b/> and more')`, `''`)),
		keyless(builtIn("point", literals("(0,0)", "(NaN,-Infinity)", "(-0,1e300)")...)),
		keyless(builtIn("lseg", literals("[(0,0),(1,1)]", "[(-0,NaN),(Infinity,1e-300)]")...)),
		keyless(builtIn("path", literals("[(0,0),(1,1),(2,0)]", "((0,0),(1,1))", "((NaN,Infinity))")...)),
		keyless(builtIn("box", literals("(1,1),(0,0)", "(Infinity,1),(-0,-Infinity)")...)),
		keyless(builtIn("polygon", literals("((0,0),(1,1),(2,0))", "((-1e300,Infinity))")...)),
		keyless(builtIn("line", literals("{1,2,3}", "{0,-1,0.3}")...)),
		keyless(builtIn("circle", literals("<(0,0),0>", "<(1,-1),Infinity>")...)),
		builtIn("float4", literals("0", "NaN", "Infinity", "-Infinity", "1e-45", "3.4028235e38", "1.1")...),
		deep(builtIn("float8", literals("0", "NaN", "Infinity", "-Infinity", "5e-324", "1.7976931348623157e308", "0.1")...)),
		builtIn("money", "'0'", "((-9223372036854775808)::numeric / 100)::money", "(9223372036854775807::numeric / 100)::money"),
		builtIn("macaddr", literals("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "08:00:2b:01:02:03")...),
		deep(builtIn("inet", literals("0.0.0.0", "10.1.2.3/8", "255.255.255.255/0", "::", "2001:db8::1/64", "::ffff:1.2.3.4")...)),
		builtIn("cidr", literals("0.0.0.0/0", "10.0.0.0/8", "::/0", "2001:db8::/32")...),
		builtIn("macaddr8", literals("00:00:00:00:00:00:00:00", "08:00:2b:01:02:03:04:05")...),
		{name: `pg_catalog."aclitem"`, values: literals("=r/postgres", "postgres=arwd*/postgres"), keyless: true, textOnly: true, alone: true},
		deep(builtIn("bpchar", `''`, `'a'`, unicodeText)),
		builtIn("varchar", `''`, `'a '`, unicodeText),
		builtIn("date", literals("-infinity", "4714-11-24 BC", "0044-03-15 BC", "0001-01-01", "2000-01-01", "10000-01-01", "5874897-12-31", "infinity")...),
		builtIn("time", literals("00:00", "23:59:59.999999", "24:00:00")...),
		builtIn("timestamp", literals("-infinity", "4714-11-24 00:00:00 BC", "0001-12-31 23:59:59.999999 BC", "2000-01-01", "10000-01-01", "294276-12-31 23:59:59.999999", "infinity")...),
		deep(builtIn("timestamptz", literals("-infinity", "4714-11-24 00:00:00+00 BC", "2024-03-31 02:30:00 Europe/Berlin", "10000-01-01 00:00:00+00", "294276-12-31 23:59:59.999999+00", "infinity")...)),
		deep(builtIn("interval", interval...)),
		builtIn("timetz", literals("00:00:00+15:59:59", "24:00:00-15:59:59", "12:00:00.000001+00")...),
		builtIn("bit", "B''", "B'1'", "B'10101010101'", "repeat('10', 500)::varbit::text::varbit"),
		deep(builtIn("varbit", "B''", "B'1'", "B'0000000000'", "repeat('01', 500)::varbit")),
		deep(builtIn("numeric", literals("0", "0.000001", "-1.50", "NaN", "Infinity", "-Infinity", "1e-16383", "1e131071", "12345678901234567890.0987654321",
			// as many digits as there can be, before and behind the point
			strings.Repeat("9", 131072)+"."+strings.Repeat("9", 16383))...)),
		keyless(builtIn("refcursor", `''`, unicodeText)),
		builtIn("regprocedure", literals("-", "pg_catalog.int4pl(int4,int4)")...),
		builtIn("regoper", literals("0", "pg_catalog.||/")...),
		builtIn("regoperator", literals("0", "pg_catalog.+(int4,int4)")...),
		builtIn("regclass", literals("-", "pg_catalog.pg_class", "pg_catalog.pg_type")...),
		builtIn("regcollation", literals("-", `pg_catalog."C"`)...),
		builtIn("regtype", literals("-", "pg_catalog.int4", "pg_catalog.text[]")...),
		builtIn("regrole", literals("-", "postgres")...),
		builtIn("regnamespace", literals("-", "pg_catalog")...),
		builtIn("regconfig", literals("-", "pg_catalog.simple")...),
		builtIn("regdictionary", literals("-", "pg_catalog.simple")...),
		deep(builtIn("uuid", literals("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff")...)),
		builtIn("pg_lsn", literals("0/0", "FFFFFFFF/FFFFFFFF")...),
		builtIn("tsvector", `''`, `'a:1A b:2,16383B ''ü b'''`, `to_tsvector('simple', repeat('word ', 300))`),
		keyless(builtIn("tsquery", `'a & !b | c <-> d:*A'`, `'''é x'' <5> y'`).andBare("''")),
		deep(builtIn("jsonb", `'null'`, `'{}'`, `'[]'`, `'{"b":1.00,"a":[1e5,-0.0,"\u00e9",{"":null}]}'`, `(repeat('[', 900) || repeat(']', 900))`,
			`to_jsonb(repeat('€', 500))`)),
		keyless(builtIn("jsonpath", `'$'`, `'strict $."ü b"[*] ? (@.a > 1 && @.b like_regex "^x" flag "i")'`)),
		keyless(builtIn("txid_snapshot", literals("1:1:", "10:20:10,14,15")...)),
		keyless(builtIn("pg_snapshot", literals("1:1:", "10:20:10,14,15", "1:9223372036854775807:")...)),
		builtIn("xid8", literals("0", "18446744073709551615")...),
	}
	return s
}

// modifiedSamples are types with a modifier, and the domains of the information schema, whose object ids
// are below those of users but differ between major versions.
func modifiedSamples() []samples {
	return []samples{
		{name: "char(10)", values: literals("", "a", "0123456789")},
		{name: "varchar(20)", values: literals("", "a ", "ääääääääääääääääääää")},
		{name: "bit(9)", values: []string{"B'000000000'", "B'101010101'"}},
		{name: "bit varying(17)", values: []string{"B''", "B'10101010101010101'"}},
		{name: "numeric(12,4)", values: literals("0", "99999999.9999", "NaN", "-0.0001")},
		{name: "numeric(3,-2)", values: literals("0", "99900", "-100")},
		{name: "numeric(3,6)", values: literals("0", "0.000999")},
		{name: "float(5)", values: literals("0", "1.5")},
		{name: "time(2)", values: literals("00:00", "12:34:56.78")},
		{name: "timestamp(0) with time zone", values: literals("2024-01-01 00:00:00+00", "infinity")},
		{name: "interval year to month", values: literals("1 year 2 months", "-7 months")},
		{name: "interval second(3)", values: literals("1.125 s", "0")},
		{name: "information_schema.sql_identifier", values: literals("", "x")},
		{name: "information_schema.cardinal_number", values: literals("0", "7")},
		{name: "information_schema.character_data", values: literals("", "é")},
		{name: "information_schema.time_stamp", values: literals("2024-01-01 00:00:00+00", "infinity")},
		{name: "information_schema.yes_or_no", values: literals("YES", "NO")},
	}
}

func rangeSamples() []samples {
	var out []samples
	add := func(name, multi string, values ...string) {
		out = append(out, deep(builtIn(name, literals(append([]string{"empty", "(,)"}, values...)...)...)))
		var m []string
		for _, v := range values {
			m = append(m, "{"+v+"}")
		}
		out = append(out, builtIn(multi, literals(append(m, "{}", "{(,)}", "{"+strings.Join(values, ",")+"}")...)...))
	}
	add("int4range", "int4multirange", "[-2147483648,-1)", "[5,7)", "[2147483646,)")
	add("int8range", "int8multirange", "(,-9223372036854775807)", "[5,7)", "[9223372036854775806,)")
	add("numrange", "nummultirange", "(-Infinity,-1.50]", "[1.0,1.00]", "(2.5,1e100)", "[Infinity,NaN]")
	add("tsrange", "tsmultirange", "[-infinity,2000-01-01)", "[2001-01-01,2002-01-01]", "(2024-02-29,infinity]")
	add("tstzrange", "tstzmultirange", "[4714-11-24 00:00:00+00 BC,2000-01-01 00:00:00+00)", "(2024-02-29 00:00:00+00,)")
	add("daterange", "datemultirange", "[-infinity,2000-01-01)", "[2001-01-01,2002-01-02)", "[5874897-12-30,infinity)")
	return out
}

// requireAllTypes fails for each scalar type of the server that is neither in the samples nor left out
// with a reason.
func requireAllTypes(t *testing.T, n *cluster.Node) {
	t.Helper()
	major := n.Major
	known := map[string]bool{}
	for _, name := range leftOut {
		known[name] = true
	}
	for _, s := range builtInSamples(major) {
		known[strings.Trim(strings.TrimPrefix(s.name, "pg_catalog."), `"`)] = true
	}
	for _, name := range n.Query(scalarTypesSQL) {
		if !known[name] {
			t.Errorf("PostgreSQL %d has the type %s, and no test for it", major, name)
		}
	}
}

const scalarTypesSQL = `
SELECT t.typname FROM pg_type t
WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'd', 'e', 'r', 'm')
  AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
ORDER BY 1`
