package integration

import (
	"fmt"
	"strings"
)

// userTypes are types of the kinds that users make, with what users make of them. The nodes differ in the
// order of an enum's labels and in attributes that were dropped.
const userTypes = `
CREATE SCHEMA "Ünï ""Typen""";
CREATE TYPE level AS ENUM ('low', 'mid', 'high');
CREATE DOMAIN zip AS varchar(10) CHECK (VALUE ~ '^[0-9]*$');
CREATE DOMAIN known_mood AS mood CHECK (VALUE <> 'nobody');
CREATE DOMAIN mood_list AS known_mood[];
CREATE TYPE "Ünï ""Typen"""."Ö ""p""" AS ("a b" mood, "c""d" "char");
CREATE TYPE inner_t AS (z zip, m mood, gone int, n numeric);
ALTER TYPE inner_t DROP ATTRIBUTE gone;
CREATE TYPE outer_t AS (i inner_t, is_ inner_t[], ms mood[], d mood_list, o "Ünï ""Typen"""."Ö ""p""", t text);
CREATE DOMAIN some_outer AS outer_t CHECK ((VALUE).t IS DISTINCT FROM 'never');
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C", multirange_type_name = textmultirange);
CREATE TYPE levelrange AS RANGE (subtype = level);
CREATE DOMAIN amount AS numeric;
CREATE TYPE amountrange AS RANGE (subtype = amount);
CREATE TYPE version AS (major int, tag level);
CREATE TYPE versionrange AS RANGE (subtype = version, multirange_type_name = versionmultirange);
CREATE DOMAIN releases AS versionrange;
CREATE TABLE of_row (id int PRIMARY KEY, m mood, gone int, v text);
ALTER TABLE of_row DROP COLUMN gone;
`

// userSamples are values of userTypes and of the extensions' types. A value of a composite with a large
// numeric is there to cross the TOAST limit inside.
func userSamples() []samples {
	inner := `ROW('123', 'happy', 1.50)::inner_t`
	outer := `ROW(` + inner + `, ARRAY[` + inner + `, NULL], '[0:1]={sad,NULL}', '{happy,sad}', ROW('Ünï "q", \', 'x'), 'text')`
	all := []samples{
		{name: "mood", values: literals("sad", "happy", `Ünï "q", \`, "ok")},
		{name: "level", values: literals("low", "high", "mid")},
		{name: "known_mood", values: literals("sad", "happy")},
		{name: "zip", values: literals("", "0123456789")},
		{name: "inner_t", values: []string{inner, `ROW(NULL, NULL, NULL)`, `ROW('', 'sad', repeat('9', 20000)::numeric)`}},
		{name: `"Ünï ""Typen"""."Ö ""p"""`, values: []string{`ROW('ok', NULL)`, `ROW(NULL, 'é')`}},
		{name: "outer_t", values: []string{outer, `ROW(NULL, '{}', '{}', '{}', NULL, '')`, `ROW(ROW(NULL, NULL, NULL), ARRAY[NULL]::inner_t[], NULL, NULL, NULL, NULL)`}},
		{name: "some_outer", values: []string{outer, `NULL::outer_t`, `ROW(NULL, NULL, NULL, NULL, NULL, NULL)`}},
		{name: "textrange", values: literals("empty", "(,)", `["a ""b""",c)`, "(,z]", "[ä,)")},
		{name: "textmultirange", values: literals("{}", "{[a,b),[c,d]}")},
		{name: "levelrange", values: literals("empty", "[low,high)", "(mid,)")},
		{name: "amountrange", values: literals("empty", "[1.0,1.00]", "(-Infinity,NaN)")},
		{name: "versionrange", values: literals("empty", `["(1,low)","(1,high)")`, `(,"(2,mid)"]`, `["(1,)",)`)},
		{name: "versionmultirange", values: literals("{}", `{["(1,low)","(1,high)"),["(2,low)",)}`)},
		{name: "releases", values: literals("empty", `["(1,low)","(3,high)")`)},
		{name: "of_row", values: []string{`ROW(1, 'sad', 'x')`, `ROW(NULL, NULL, NULL)`}},
		{name: "ext.hstore", values: literals("", `a=>1, "b \"q\""=>NULL`, `ü=>""`)},
		{name: "ext.citext", values: literals("", "aBc", "ÄÖÜ", "other")},
		{name: "ext.ltree", values: literals("", "Top.Science.A", "a_1.b")},
		{name: "ext.lquery", values: literals("*.a|b{1,2}", "!x.*"), keyless: true},
		{name: "ext.ltxtquery", values: literals("a & b*", "!c@"), keyless: true},
		{name: "ext.cube", values: literals("(1,2),(3,4)", "0"), keyless: true},
		{name: "ext.isbn13", values: literals("978-0-393-04002-9", "978-3-16-148410-0"), textOnly: true, alone: true},
		{name: "ext.seg", values: literals("1.50", "~2 .. <3"), keyless: true, textOnly: true, alone: true},
	}
	for i := range all {
		s := &all[i]
		s.deep = !s.textOnly
		switch s.name {
		case "inner_t", "outer_t", "some_outer", "of_row", `"Ünï ""Typen"""."Ö ""p"""`:
			s.alone = true
		}
	}
	return all
}

// userTypesSchema is the schema of node i.
func userTypesSchema(i int, all []samples) string {
	mood := [2]string{
		`CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'Ünï "q", \', 'nobody');`,
		`CREATE TYPE mood AS ENUM ('happy', 'nobody', 'sad'); ALTER TYPE mood ADD VALUE 'Ünï "q", \' BEFORE 'sad'; ALTER TYPE mood ADD VALUE 'ok' BEFORE 'happy';`,
	}[i]
	dummies := [2]string{"", dummyTypes}[i]
	dropped := [2]string{"", `ALTER TYPE outer_t ADD ATTRIBUTE x int; ALTER TYPE outer_t DROP ATTRIBUTE x;`}[i]
	var b strings.Builder
	b.WriteString("CREATE SCHEMA ext;\n")
	for _, e := range []string{"hstore", "citext", "ltree", "cube", "isn", "seg"} {
		fmt.Fprintf(&b, "CREATE EXTENSION %s SCHEMA ext;\n", e)
	}
	return dummies + b.String() + mood + userTypes + dropped + typesSchema(all)
}
