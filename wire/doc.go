// Package wire owns the frame, the unit in which transactions travel from a capture to every apply.
//
// A frame comes from capture, goes through stream as bytes and reaches apply as the same frame. The
// package keeps invariant 8 on the decoding side: no length read from outside makes it allocate more
// than [MaxBody]. It does not know PostgreSQL connections, NATS, or what a value means but for
// the equality of keys ([KeyType]): tuples stay as pgoutput wrote them, byte for byte, from the WAL to the
// other server's wire protocol.
//
// There are no goroutines and no I/O here. Begin reading with [Frame] and [Records].
//
// # Format, versions 1 and 2
//
// Integers named uvarint and varint are those of encoding/binary (protobuf's; varint is zig-zag). A
// string is a uvarint length and that many bytes of UTF-8. An origin is a string (node) and a uvarint
// (epoch). A vector is a uvarint count and, for each entry in rising order of (node, epoch): origin,
// uvarint seq, varint stamp. A stamp counts microseconds since 2000-01-01 UTC.
//
//	frame = "PGBF" version:byte flags:byte header body crc:uint32
//
// A change of the format that a reader of this version would not take as it is meant, be it a flag, a kind of record or what one
// holds, is another version; fields at the end of the header are not. A pgbridge reads its version and the one before it, and
// writes its own. So that nodes can be upgraded one after the other, a version is read by one release before the next one
// writes it. Who meets a version that it cannot read waits in front of that frame. testdata holds frames of each version that is
// read.
//
// The crc is CRC-32C (Castagnoli), big endian, over all bytes before it. Flag bit 0: the body is one
// zstd frame. Flag bit 1: this is a fence; it carries no records, only the header, and says that its
// writer epoch is the one in force from here on. A higher version or another flag is refused.
//
//	header = length:uvarint, then in that many bytes:
//	         cluster:string sender:string origin writer_epoch:uvarint
//	         first_seq:uvarint last_seq:uvarint last_stamp:varint
//	         first_commit_time:varint last_commit_time:varint
//	         up:vector low:vector
//	         resume_lsn:uvarint back:uvarint
//	         mark_xid:uvarint mark_seq:uvarint
//	         system_id:uvarint timeline:uvarint
//	         [ origin_writer:uvarint hops:uvarint, and for each a node:string [ standbys:string
//	         [ signature:string claim:string ] ] ]
//	body   = length:uvarint (before compression), stored_length:uvarint, bytes
//
// A reader skips what it does not know at the end of the header. last_seq, last_stamp, up, low and the
// mark are the origin's state after the whole frame; first_seq is 0 if no transaction ends in it.
// resume_lsn: every commit whose record starts below it is in this frame or an earlier one. back: the
// stream sequence of the frame in which the oldest run begins that is still open after this frame, 0 if
// none; whoever wants to read on behind this frame must begin there to have all the chunks. A node that
// hands another one's frame on puts itself down as the sender and its own writer epoch, keeps the origin's as
// origin_writer, which is 0 in the origin's own stream, and adds who sent it to it to hops; back is then of its own stream.
// The ids of runs count within the writer epoch of the origin's bridge that began them: origin_writer, or if that is 0 writer_epoch. A
// higher one voids the runs that are open; behind it, what a lower one says of runs comes again, and is passed over. A fence says nothing of that.
// standbys: the physical slots without whose standbys nobody was shown anything of the origin's that is not in this frame or an
// earlier one, names divided by commas; empty if that is not so.
//
// signature: the author's, by Ed25519 (RFC 8032), of "pgbridge frame", a byte 0, and the claim. The claim is a header as the author has
// written it, with sender, hops and signature left out, back and origin_writer 0, and as writer_epoch that of the author's bridge; and SHA-256 of the body. It
// is left out where it follows from the frame itself. Else the frame was handed on behind what holds a part of it already: then the body is whole, as it
// was signed, but of its transactions those up to first_seq - 1 (last_seq if first_seq is 0) are not of this frame, nor does it say of the
// origin what the claim does. A fence may have the claim of an earlier frame, without its body.
//
// The body is a list of records, each
//
//	record = kind:byte length:uvarint payload
//
//	V  dependencies of the transactions that follow in this frame: up:vector low:vector
//	R  relation, before its first use in the frame (or run), again if it changed:
//	   id:uvarint schema:string name:string replica_identity:byte columns:uvarint, and for each column
//	   flags:byte (bit 0: part of the replica identity) name:string type:uvarint typmod:varint
//	   type_schema:string type_name:string (both empty for a built-in type, whose id says all)
//	Y  versions of other origins' transactions that the sender's node did not let win on some row, because
//	   of a version that was there already: count:uvarint, and for each: origin stamp:varint table:uint64
//	   key:uint64. Table is XXH3-64 over schema:string name:string, key the low half of XXH3-128 over
//	   these and the key's canonical bytes; 0 stands for any row of the table. It stands in the stream
//	   before the first vector whose low includes such a transaction
//	Q  the sender's node asks another one to write a row again in full: id:varint of:origin (who is asked)
//	   schema:string table:string key:string (a JSON object of the key's columns)
//	A  answer to a Q: the row stands in the stream in front of this record, in full or as deleted, whoever did
//	   that: id:varint to:origin. An id below 0 answers -id: the sender's node keeps the row out of its
//	   table, since a later one has a value that must be unique
//	B  begin: seq:uvarint stamp:varint commit_time:varint commit_lsn:uvarint xid:uvarint
//	I  insert, U update, D delete: relation:uvarint, then the tuples as in pgoutput's message of that
//	   letter: I 'N' tuple; U [ 'K' | 'O' tuple ] 'N' tuple; D 'K' | 'O' tuple
//	T  truncate: options:byte (as pgoutput) count:uvarint relation:uvarint...
//	M  change of the schema, which every node makes in this place of the transaction: role:string
//	   search_path:string sql:string (one or more statements)
//	E  sealed: part:byte group:string key:uint64 nonce:24 bytes, and what XChaCha20-Poly1305 makes of a piece of a list of records
//	   R I U D T Q, for the nodes of group (names in rising order, divided by spaces), with the key whose id that is. The pieces of
//	   an origin that follow each other go on in each other. Part says what it is to who cannot open it: 0 an R, 1 a change or its
//	   beginning, 2 more of the change before, 3 a Q. The additional data are all from part to key, and the author's origin
//	C  commit of the transaction begun by B: empty
//	K  chunk of a run: run:uvarint offset:uvarint bytes
//	L  commit of a run as one transaction: the fields of B, then run:uvarint length:uvarint
//	   changes:uvarint aborts:uvarint (how many Z records are in the run)
//	   [ schemas:uvarint (how many M records are in the run) ]
//	X  the run will never be committed: run:uvarint
//	S  in a run only: the rows that follow were written by this subtransaction: xid:uvarint
//	Z  in a run only: subtransaction rolled back, all its rows in the run are void: xid:uvarint
//
// A transaction that fits is B, rows, C in one frame. A larger one is a run: the chunks of one run,
// concatenated in order of their offsets, are a list of the records R S Z I U D T M E, cut anywhere, also in
// the middle of a record; L commits them. A run belongs to the writer epochs, of sender and origin, of its chunks: a
// frame with a higher one voids every open run. A run that is aborted whole ends in X.
//
// A tuple is pgoutput's TupleData: columns:int16, and for each 'n' (NULL), 'u' (unchanged TOAST value),
// 't' or 'b' with length:int32 and that many bytes (text or binary), all big endian. Beside these there is 's', of the same
// form, in frames of version 2: a value that is sealed as the pieces of an E are, from its part on, which is 4 for a text and 5
// for a binary one. It is NULL to who is not in its group. Sources: PostgreSQL, "Logical Replication Message Formats"; src/backend/replication/logical/proto.c.
package wire
