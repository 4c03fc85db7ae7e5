package rowkey

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/wire"
)

// NoHash is the error for a type whose equal values may look different, and which the server does not hash
// in 64 bits either.
type NoHash struct {
	Type string // as SQL writes it
}

// Error says what the type lacks.
func (e *NoHash) Error() string {
	return fmt.Sprintf("type %s has no extended hash function, so pgbridge cannot tell which of its values are equal", e.Type)
}

// Mend says what to do about a table's key of that type.
func (e *NoHash) Mend() string {
	return fmt.Sprintf("give the table a key of another type, or the type a default hash operator class with FUNCTION 2, "+
		"or, if its equal values are always stored alike, run ALTER OPERATOR FAMILY ... USING btree ADD FUNCTION 4 (%s) btequalimage(oid)", e.Type)
}

// Types reads from a catalog how values of types are hashed, each type once. Not safe for concurrent use.
type Types struct {
	conn       *pgx.Conn
	types      map[uint32]*typeRow
	collations map[uint32]*collation
	known      map[place]*wire.KeyType
}

// place is where values stand: the same text is another key under another collation.
type place struct{ oid, collation uint32 }

// NewTypes returns Types that reads over conn.
func NewTypes(conn *pgx.Conn) *Types {
	return &Types{conn: conn, types: map[uint32]*typeRow{}, collations: map[uint32]*collation{}, known: map[place]*wire.KeyType{}}
}

// typeRow is what the catalog says of a type.
type typeRow struct {
	name            string // with its schema, for SQL
	kind            string // pg_type.typtype: b, c, d, e, r, m
	array           uint32
	base            uint32 // of a domain
	elem            uint32 // of an array
	bound           uint32 // of a range or multirange
	boundCollation  uint32
	fields          []uint32 // of a composite type
	fieldCollations []uint32
	extension       string
	compared        uint32 // what the default btree operator class takes: text for varchar; 0 without one
	image           string // its support function 4
	hash, hashed    string // the extended hash function, and the type that it takes
}

// typeSQL takes the default operator classes as GetDefaultOpClass does: of the type itself, else of one
// that the type is binary-coercible to.
const typeSQL = `
SELECT format('%I.%I', n.nspname, t.typname), t.typtype::text, t.typarray, t.typbasetype,
       CASE WHEN t.typlen = -1 AND t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc THEN t.typelem ELSE 0 END,
       coalesce(r.rngsubtype, 0), coalesce(r.rngcollation, 0),
       ARRAY(SELECT a.atttypid FROM pg_attribute a
             WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT a.attcollation FROM pg_attribute a
             WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
       coalesce((SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                 WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'), ''),
       coalesce(b.opcintype, 0), coalesce(b.image, ''), coalesce(h.function, ''), coalesce(h.input, '')
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
     LEFT JOIN pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid)
     LEFT JOIN LATERAL (
         SELECT c.opcintype,
                (SELECT f.proname::text FROM pg_amproc p JOIN pg_proc f ON f.oid = p.amproc
                 WHERE p.amprocfamily = c.opcfamily AND p.amproclefttype = c.opcintype AND p.amprocrighttype = c.opcintype
                   AND p.amprocnum = 4 AND f.pronamespace = 'pg_catalog'::regnamespace) AS image
         FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod
         WHERE m.amname = 'btree' AND c.opcdefault AND (c.opcintype = t.oid OR EXISTS (
               SELECT FROM pg_cast k WHERE k.castsource = t.oid AND k.casttarget = c.opcintype AND k.castmethod = 'b' AND k.castcontext = 'i'))
         ORDER BY c.opcintype = t.oid DESC, c.opcintype LIMIT 1) b ON true
     LEFT JOIN LATERAL (
         SELECT format('%I.%I', fn.nspname, f.proname) AS function, format('%I.%I', tn.nspname, i.typname) AS input
         FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod
              JOIN pg_amproc p ON p.amprocfamily = c.opcfamily AND p.amproclefttype = c.opcintype
                                  AND p.amprocrighttype = c.opcintype AND p.amprocnum = 2
              JOIN pg_proc f ON f.oid = p.amproc JOIN pg_namespace fn ON fn.oid = f.pronamespace
              JOIN pg_type i ON i.oid = c.opcintype JOIN pg_namespace tn ON tn.oid = i.typnamespace
         WHERE m.amname = 'hash' AND c.opcdefault AND c.opcintype IN (t.oid, b.opcintype)
         ORDER BY c.opcintype = t.oid DESC LIMIT 1) h ON true
WHERE t.oid = $1`

func (t *Types) read(ctx context.Context, oid uint32) (*typeRow, error) {
	if r := t.types[oid]; r != nil {
		return r, nil
	}
	r := &typeRow{}
	err := t.conn.QueryRow(ctx, typeSQL, oid).Scan(&r.name, &r.kind, &r.array, &r.base, &r.elem, &r.bound, &r.boundCollation,
		&r.fields, &r.fieldCollations, &r.extension, &r.compared, &r.image, &r.hash, &r.hashed)
	if err != nil {
		return nil, fmt.Errorf("read type %d: %w", oid, err)
	}
	t.types[oid] = r
	return r, nil
}

// collation is what the catalog says of a collation. Only a nondeterministic one calls texts equal that
// have different bytes.
type collation struct {
	name          string // with its schema, for SQL; empty for none
	deterministic bool
}

func (t *Types) collation(ctx context.Context, oid uint32) (*collation, error) {
	if c := t.collations[oid]; c != nil {
		return c, nil
	}
	c := &collation{deterministic: true}
	if oid != 0 {
		err := t.conn.QueryRow(ctx, `SELECT format('%I.%I', n.nspname, c.collname), c.collisdeterministic
			FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = $1`, oid).Scan(&c.name, &c.deterministic)
		if err != nil {
			return nil, fmt.Errorf("read collation %d: %w", oid, err)
		}
	}
	t.collations[oid] = c
	return c, nil
}

// Key returns how values of the type are hashed where they stand under the collation, 0 for none; nil
// means by their bytes. Errors: NoHash, and those of the server.
func (t *Types) Key(ctx context.Context, oid, collation uint32) (*wire.KeyType, error) {
	at := place{oid, collation}
	if k, ok := t.known[at]; ok {
		return k, nil
	}
	k, err := t.key(ctx, oid, collation)
	if err == nil {
		t.known[at] = k
	}
	return k, err
}

func (t *Types) key(ctx context.Context, oid, collation uint32) (*wire.KeyType, error) {
	r, err := t.read(ctx, oid)
	if err != nil {
		return nil, err
	}
	switch {
	case r.kind == "d":
		return t.Key(ctx, r.base, collation)
	case r.kind == "e": // its labels
		return nil, nil
	case r.kind == "c":
		return t.record(ctx, r)
	case r.kind == "r":
		return t.container(ctx, wire.FormRange, r.bound, r.boundCollation)
	case r.kind == "m":
		return t.container(ctx, wire.FormMultirange, r.bound, r.boundCollation)
	case r.elem != 0:
		return t.container(ctx, wire.FormArray, r.elem, collation)
	}
	return t.scalar(ctx, oid, r, collation)
}

func (t *Types) container(ctx context.Context, form wire.KeyForm, inner, collation uint32) (*wire.KeyType, error) {
	elem, err := t.Key(ctx, inner, collation)
	if err != nil {
		return nil, err
	}
	return &wire.KeyType{Form: form, Elem: elem}, nil
}

func (t *Types) record(ctx context.Context, r *typeRow) (*wire.KeyType, error) {
	k := &wire.KeyType{Form: wire.FormRecord}
	for i, oid := range r.fields {
		f, err := t.Key(ctx, oid, r.fieldCollations[i])
		if err != nil {
			return nil, err
		}
		k.Fields = append(k.Fields, f)
	}
	return k, nil
}

// Built-in types whose equal values may differ in their bytes, by what their operators take.
const (
	oidName     = 19
	oidInt8     = 20
	oidInt2     = 21
	oidInt4     = 23
	oidFloat4   = 700
	oidFloat8   = 701
	oidBPChar   = 1042
	oidInterval = 1186
	oidNumeric  = 1700
	oidTSVector = 3614
	oidJSONB    = 3802
)

// bytewise are extensions all of whose types have equal bytes for equal values, though their operator
// classes do not say so: ltree compares its levels' bytes, isn its numbers.
var bytewise = []string{"isn", "ltree"}

func (t *Types) scalar(ctx context.Context, oid uint32, r *typeRow, at uint32) (*wire.KeyType, error) {
	c, err := t.collation(ctx, at)
	if err != nil {
		return nil, err
	}
	form := wire.FormBytes
	switch r.compared {
	case oidInt2, oidInt4, oidInt8:
		form = wire.FormInteger
	case oidFloat4:
		form = wire.FormFloat4
	case oidFloat8:
		form = wire.FormFloat8
	case oidNumeric:
		form = wire.FormNumeric
	case oidInterval:
		form = wire.FormInterval
	case oidJSONB:
		form = wire.FormJSON
	case oidBPChar: // its operator class claims equal images, which holds for one declared length only
		form = wire.FormPadded
		if !c.deterministic {
			// The cast to text takes the blanks off; hashbpcharextended of PostgreSQL 15 does not.
			padded := *r
			padded.hash, padded.hashed = "pg_catalog.hashtextextended", "pg_catalog.text"
			return padded.served(oid, c)
		}
	case oidTSVector: // compared lexeme by lexeme, in the order in which they are sent
	default:
		alike := r.image == "btequalimage" || r.image == "btvarstrequalimage" && c.deterministic
		if !alike && !slices.Contains(bytewise, r.extension) {
			form = wire.FormServed
		}
	}
	switch form {
	case wire.FormBytes:
		return nil, nil
	case wire.FormServed:
		return r.served(oid, c)
	}
	return &wire.KeyType{Form: form}, nil
}

// The seeds of the two halves of a digest: any two, but not 0, with which a function repeats the bits of
// the one without a seed.
const seedHi, seedLo = 0x7067627269646765, 0x6b65797320686173

// served is a type that the server hashes. The function that hashes a name leaves the collation out.
func (r *typeRow) served(oid uint32, c *collation) (*wire.KeyType, error) {
	if r.hash == "" || r.array == 0 || oid == oidName {
		return nil, &NoHash{Type: r.name}
	}
	value := "v::" + r.hashed
	if c.name != "" {
		value = fmt.Sprintf("(%s) COLLATE %s", value, c.name)
	}
	return &wire.KeyType{Form: wire.FormServed, OID: oid, Array: r.array,
		Query: fmt.Sprintf("SELECT %s(%s, %d), %s(%s, %d) FROM unnest($1) WITH ORDINALITY u(v, n) ORDER BY n",
			r.hash, value, int64(seedHi), r.hash, value, int64(seedLo))}, nil
}
