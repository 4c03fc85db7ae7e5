package catalog

import "slices"

// Summary is what another node must know of a node's tables. It does not change once read.
type Summary struct {
	Node     string `json:"node"`
	Version  int    `json:"version"`  // server_version_num
	Encoding string `json:"encoding"` // of the database
	// Collation is the database's own, with its provider: "c:en_US.utf8".
	Collation string     `json:"collation"`
	Tables    []Table    `json:"tables"` // by schema and name
	Sequences []Sequence `json:"sequences"`
	// IDNumber is the number that pgbridge.time_id() puts into identifiers here; nil if there is no such function.
	IDNumber *int `json:"id_number,omitempty"`
}

// Table is one table that is replicated.
type Table struct {
	Name    string   `json:"name"` // schema.table, quoted for SQL
	Columns []Column `json:"columns"`
	Key     []string `json:"key"`              // by name
	Unique  []string `json:"unique,omitempty"` // what its unique indexes are on, as SQL says it; sorted
	Checks  []string `json:"checks,omitempty"` // its CHECK and EXCLUDE constraints, likewise

	schema, name string // not quoted; only of what was read here
}

// Column is a column of a Table.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type"` // as SQL says it, with its schema unless that is pg_catalog
	// Detail is what the type's name does not say: labels of an enum, fields of a composite type, what a domain is of.
	Detail    string `json:"detail,omitempty"`
	NotNull   bool   `json:"not_null,omitempty"`
	Generated bool   `json:"generated,omitempty"`
	// Collation is the one that the column names itself, with its provider; empty: the database's, or none.
	Collation string `json:"collation,omitempty"`
	// Nondeterministic: values that look different may be equal.
	Nondeterministic bool `json:"nondeterministic,omitempty"`
}

// column returns the column of that name, nil if there is none.
func (t *Table) column(name string) *Column {
	if i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name }); i >= 0 {
		return &t.Columns[i]
	}
	return nil
}

// table returns the table of that name, nil if there is none.
func (s *Summary) table(name string) *Table {
	if i := slices.IndexFunc(s.Tables, func(t Table) bool { return t.Name == name }); i >= 0 {
		return &s.Tables[i]
	}
	return nil
}

// Only returns a summary with the tables that match, and their sequences. It must have been read here.
func (s *Summary) Only(match func(schema, table string) bool) *Summary {
	only := *s
	only.Tables = slices.DeleteFunc(slices.Clone(s.Tables), func(t Table) bool { return !match(t.schema, t.name) })
	only.Sequences = slices.DeleteFunc(slices.Clone(s.Sequences), func(q Sequence) bool { return !match(q.schema, q.table) })
	return &only
}

// sequence returns the sequence of a column, nil if there is none.
func (s *Summary) sequence(table, column string) *Sequence {
	if i := slices.IndexFunc(s.Sequences, func(q Sequence) bool { return q.Table == table && q.Column == column }); i >= 0 {
		return &s.Sequences[i]
	}
	return nil
}
