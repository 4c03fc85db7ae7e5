package capture

import "github.com/pgbridge/pgbridge/wire"

// sealed seals what of b stands from at on, if the relation's rows are.
func (r *relation) sealed(b []byte, at int, part wire.SealedPart) []byte {
	if r.seal == nil {
		return b
	}
	r.plain = append(r.plain[:0], b[at:]...)
	return r.seal.Append(b[:at], part, r.plain)
}

// sealer is what rows of a table are sealed by; nil: by nothing.
func (o *Options) sealer(schema, table string) *wire.Sealer {
	if o.Seal == nil {
		return nil
	}
	return o.Seal(schema, table)
}

// appendTruncate appends a TRUNCATE of relations: one record for those that are sealed alike.
func appendTruncate(dst []byte, options byte, rels []*relation) []byte {
	var ids []uint32
	for i, r := range rels {
		first := true
		for _, before := range rels[:i] {
			first = first && before.seal != r.seal
		}
		if !first {
			continue
		}
		ids = ids[:0]
		for _, s := range rels[i:] {
			if s.seal == r.seal {
				ids = append(ids, s.ID)
			}
		}
		at := len(dst)
		dst = r.sealed(wire.AppendTruncate(dst, options, ids), at, wire.SealedChange)
	}
	return dst
}

// appendNote is wire.AppendNote, and seals what names rows of tables that are sealed.
func (t *tagger) appendNote(dst []byte, prefix string, content []byte) ([]byte, bool) {
	at := len(dst)
	dst, ok := wire.AppendNote(dst, prefix, content)
	if !ok || prefix != wire.AskPrefix {
		return dst, ok
	}
	ask, err := wire.ParseAsk(content)
	if err != nil {
		return dst[:at], false
	}
	r := relation{seal: t.opts.sealer(ask.Schema, ask.Table)}
	return r.sealed(dst, at, wire.SealedOther), true
}
