"""Every limit of the product in one table, each with the reason beside it. Sizes in bytes, times in seconds."""

# The way in
CODE_MAX = 64  # characters of a link code; longer ones cannot exist, so they are refused unread
QUERY_BYTES_MAX = 8_192  # beyond this a query is an attack or a mistake; browsers and proxies cut near here too
QUERY_PARAMS_MAX = 64  # ten sub ids, ad click ids and utm tags come to about 30
LINE_BYTES_MAX = 32_768  # read of a request line, so that a too long query gets our answer and not the parser's
HEADER_BYTES_MAX = 8_190  # one header line or field, aiohttp's own default said explicitly
LANE_HEAD_BYTES_MAX = 8_190  # a longer head is aiohttp's: so the lane never takes a line or field that aiohttp refuses
LANE_HEADERS_MAX = 100  # aiohttp refuses more than 128
LANE_LINE_BYTES_MAX = 300  # of a header's line whose meaning is kept; User-Agents end before it
LANE_LINES_MAX = 10_000  # of them, about 4 MB; then a process begins anew
BODY_BYTES_MAX = 262_144  # a call of the API; an offer with 20 landings comes to about 10 kB
FORM_BYTES_MAX = 65_536  # a postback with every field filled with letters that are encoded comes to about 30 kB
CONVERSIONS_BYTES_MAX = 2 * 1024 * 1024  # 1,000 conversions with every field filled come to about 1 MB
CONVERSIONS_PER_POST_MAX = 1_000  # one body is one durability wait
CONVERSIONS_AT_ONCE = 100  # of one body, then other requests have their turn: about 5 ms
RETURN_MAX = 200  # characters of the answer that a sender asks for; trackers want `OK` or `1`
FORWARDED_MAX = 1_024  # characters of X-Forwarded-For that are read, from its right end: some twenty proxies
LANGUAGES_MAX = 100  # characters read of Accept-Language, whose first language is the visitor's
VALUE_MAX = 255  # characters kept of a sub id, source or click ref; the rest is cut, the click is kept
USER_AGENT_MAX = 512  # characters read of a User-Agent; real ones end before 300
RAW_MAX = 4_096  # characters kept of an intake as it was sent; a postback with every field filled has about 1,500
FOREIGN_CLICK_MAX = 255  # characters of another tracker's click id; the longest, of impact, have about 100
EVENT_ID_MAX = 255  # characters of the sender's name of a refund or an increment; cutting could merge two
CUSTOMER_ID_MAX = 255  # characters of a customer's id; refused beyond, because cutting could merge two customers
COUPON_CODE_MAX = 64  # characters of a coupon code; people type them
STATUS_MAX = 64  # characters of a status as its sender calls it
ORDER_ID_MAX = 255  # characters of an order id; refused beyond, because cutting could merge two orders
EVENT_NAME_MAX = 64  # characters of a conversion's event name
DESTINATION_MAX = 2_048  # characters of a destination URL; what every browser accepts in a Location
NAME_MAX = 200  # characters of a name typed by an operator
AMOUNT_MINOR_MAX = 10**15  # no order is worth ten trillion; above it the sender's units are wrong

# QR codes, drawn by an edge
QR_HELD_MAX = 1_000  # per process, about 5 MB
QR_LIFE_S = 86_400.0  # what a code says never changes; browsers keep it as long
QR_SHARE = 0.2  # of the interpreter, at most, that drawing takes from the clicks: 10-25 ms a code, long hosts 100
QR_WAITING_MAX = 20  # more would wait longer than two or three seconds: they are told to come back

# Connections
KEEPALIVE_S = 75.0  # longer than a balancer's idle time (60 s), else its reused connections are reset
SLOW_BODY_S = 15.0  # a request body that takes longer is a slow-loris; heads are cut by the keep-alive time
BACKLOG = 4_096  # connections the kernel queues while a worker is busy; the default 128 drops a spike
SHUTDOWN_S = 8.0  # for requests in flight at SIGTERM; the whole exit has 15 s
EXIT_S = 15.0  # promise P5: SIGTERM to exit

# The recorder
SWITCH_S = 0.000_05  # the log's thread gets the interpreter when it wants it, five times a batch: Python waits 5 ms
LINGER_S = 0.001_5  # the first click of a batch waits at most this long for company, while others keep coming
ACK_DEADLINE_S = 0.150  # the longest a visitor waits for durability
BATCH_BYTES_MAX = 131_072  # one group commit; larger ones gain nothing and delay everyone in them
QUEUE_EVENTS_MAX = 50_000  # events not yet durable, about 25 MB; beyond it new ones are counted lost
BEAT_S = 1.0  # one watermark record per edge and second
CLOCK_AHEAD_MAX_S = 60.0  # a persisted or heard time further ahead than this is a broken clock

# Kafka, as an edge writes it
SPOOL_WAIT_S = 0.100  # on top of the ack deadline, for the spool's fsync; then a click is answered `late`
PROBE_S = 2.0  # a heartbeat that Kafka has not acknowledged by then ends its producer
PRODUCER_START_S = 3.0  # to find the cluster; a frozen broker accepts connections and says nothing
PRODUCER_STOP_S = 1.0  # aiokafka's stop may hang; what is abandoned lies in the spool
KAFKA_METADATA_S = 10.0  # new partitions are noticed this soon; leaders that moved at once, by an error
KAFKA_IDLE_S = 540.0  # an idle connection is closed before the broker does it, which takes 600
KAFKA_REQUEST_S = 5.0  # of one request on the wire; the client tries again on a new connection
REBUILD_PAUSE_MAX_S = 3.0  # between attempts to build a producer, so that a broker's return is seen well within 10 s
SPOOL_SEGMENT_BYTES_MAX = 8 * 1024 * 1024  # what is sent is given back to the disk in such pieces
DRAIN_BYTES_PER_S = 4 * 1024 * 1024  # about 8,000 events a second, beside the live ones
DRAIN_BYTES_AT_ONCE = 512 * 1024  # sent together, each row to its partition, so that slow acks do not make it crawl
DRAIN_START_S = 15.0  # to find the cluster, when acks take a second
DRAIN_WAIT_S = 5.0  # for their acknowledgement; nobody waits for it, so longer than a heartbeat may take
PORTION_DOUBLED_S = 60.0  # after a batch was refused for its size, larger ones are tried again this late
REFUSED_RETRY_S = 5.0  # what the broker refused for its size is tried again: an operator may have raised the topic's
RECORD_BYTES_MAX = 1_048_588  # what a topic must take, Kafka's own default; a batch of ours is 128 kB
ABANDONED_RETRY_S = 30.0  # the spool of a slot that has no worker any more; its edge is held back by name meanwhile

# The journal
SEGMENT_BYTES_MAX = 64 * 1024 * 1024  # a segment and so its WAL; a frozen reader cannot grow it further
SEGMENT_AGE_MAX_S = 3_600.0  # a quiet edge still lets old segments be removed
JOURNAL_POLL_S = 0.05  # a slot that was read to its end is left alone for so long: Postgres' group commit
JOURNAL_IDLE_S = 0.2  # one in which there was nothing new; adds half of this to the first click's way to Postgres

# Redis
READ_TIMEOUT_S = 0.100  # the request path never waits longer for Redis; on a full core 50 ms pass by themselves
READ_POOL_MAX = 16  # connections per process for reads; more would only queue inside Redis
FLUSH_EVERY_S = 0.200  # live counters, one pipeline per flush
COUNTER_TIMEOUT_S = 1.0  # the flusher is off the request path; a slow Redis only delays display values
COUNTER_KEYS_MAX = 200_000  # (key, field) pairs held while Redis is away; beyond it they are dropped, counted
COUNTERS_SENT_MAX = 5_000  # fields in one script: some 5 ms of Redis
COUNTER_TTL_S = 172_800  # display values are of use for two days
CAPS_HELD_MAX = 100_000  # caps in a period that one edge counts, about 20 MB; the longest unused are asked again
CAPS_SENT_MAX = 5_000  # caps in one flush: some 10 ms of Redis, when there is much to say after it was away
PUBLISH_TIMEOUT_S = 2.0  # the publisher and the API's own publish; beyond it the answer says `live: false`

# The link cache
L1_ENTRIES_MAX = 130_000  # per process, about 130 MB; a hundred thousand links, their offers and partners
L1_LIFE_S = 120.0  # the belt to the invalidation stream's braces, jittered by a quarter
L1_AHEAD = 0.5  # of its life, in which an entry that is used is refreshed while nobody waits: about once a minute
L1_BROKEN_S = 3.0  # how long an entry fetched while the stream is broken is good for
NEGATIVE_S = 0.250  # an unknown code is remembered this long
NEGATIVE_ENTRIES_MAX = 10_000  # a storm of unknown codes stays bounded
FETCH_KEYS_MAX = 500  # in one MGET: 0.2 ms of Redis, about 200 kB of answer
FETCH_WAITING_MAX = 10_000  # keys; what waits longer than twenty fetches is better told to come back
FETCH_RETRY_S = 1.0  # while Redis is away what is held is used, and refreshed once a second
STREAM_SILENCE_S = 3.0  # three beats missed: the stream is broken
STREAM_BEAT_S = 1.0  # the publisher's beat on the invalidation channel
COMPLETE_TTL_S = 5  # life of the marker which says that the set of links in Redis is complete
OUTBOX_POLL_S = 0.200  # how often the publisher looks for changes that the API could not publish itself
REFILL_BATCH = 1_000  # rows read at once when Redis is filled again, or the outbox is drained
REFILL_VALUES_PER_S = 20_000  # leaves Redis to the edges: 100,000 links in 5 s, a million in 50 s
REFILL_USED_WITHIN_S = 10_800.0  # links clicked in the last three hours are filled first
REFILL_USED_QUERY_S = 3.0  # to find them; it costs less than waiting for all others to be filled before them
WRITE_AT_ONCE = 200  # values in one script, about 1 ms in which Redis answers nobody else
OUTBOX_COUNTED_MAX = 100_000  # beyond it the figure says no more

# The aggregator
BATCH_EVENTS_MAX = 20_000  # per transaction; 0.1-0.3 s of work, so a takeover never waits long. Of more, more share a
#                            row of the rollups: 0.3 of them for each click, where 5,000 need 0.46
GARBAGE_OBJECTS = 20_000  # new ones before cycles are looked for among them; events have none, and come by the thousand
DECODE_BYTES_MAX = 128 * 1024  # at once; 1.5 ms in which nothing is sent to Postgres
READ_BYTES_MAX = 8 * 1024 * 1024  # one read of the journal; about BATCH_EVENTS_MAX events
FENCE_WAIT_S = 1.0  # a healthy holder commits in less; one that waits for its client is frozen and is ended
FENCE_GIVE_UP_S = 5  # whole seconds; the frozen holder could not be ended: drop the batch, begin again
REREAD_POSITIONS_S = 5.0  # a quiet consumer asks again where it is: Postgres may have been restored meanwhile
SETTLE_CAPS_S = 1.0  # how often Redis hears what Postgres counted against caps; a round that takes longer is rarer
SETTLE_SHARE = 0.2  # of the time, at most, this keeps one connection of Postgres busy
SETTLE_STATEMENT_S = 60.0  # the first look at a cap that has no period reads all that its offer ever had
SETTLE_LATEST_S = 7_200.0  # what happened this long ago is summed once: late events come within minutes
SETTLE_AGAIN_S = 86_400.0  # then it is summed again, for what came later still
SETTLE_BATCH = 1_000  # caps in one statement, and in one script of Redis
BEHIND_EVERY_S = 1.0  # how often conversions are looked after that wait for something
BEHIND_BATCH = 1_000  # of them in one transaction, some 0.1 s, so that nobody waits long for a lock of it
BEHIND_SHARE = 0.5  # of the time, at most, this keeps one connection of Postgres busy: it comes after what is live
BEHIND_IDLE_S = 10  # whole seconds; a process that freezes inside a batch keeps its locks no longer than this
SETTLE_EVERY_S = 5.0  # how often quarter hours are looked for that can be settled; one comes every 15 minutes
SETTLE_QUARTER_S = 600  # whole seconds; one statement about a quarter hour of ten million clicks, of which most are new
SETTLE_RECHECK_S = 660.0  # after SIFT_S no batch is under way that began before a quarter hour was settled
SETTLE_RECHECK_BATCH = 100  # quarter hours that are looked at again at once; after an upgrade they come by the thousand
SETTLE_MEMORY_MB = 64  # for each sort of a quarter hour's clicks: 100,000 of them take about 20
DAY_SETTLES_S = 86_400  # after its end: late beats, late clicks and a day's rejections are in a day's first figures
DAY_CORRECT_S = 900.0  # a day's later changes become one version this often; after SIFT_S no batch knows less of it
DETAIL_VALUES_MAX = 100  # of a partner, a field and a quarter hour, the rest is `(other)`: more is an id, not a group
DIFFERENCES_SHOWN_MAX = 100  # rows of rollups that differ, in one table: more say no more of what went wrong
SETTLED_PRUNE_BATCH = 10_000  # rows of one table in one transaction, about 0.1 s
TASK_RESTART_MAX_S = 5.0  # the longest pause before a crashed task begins again
PRUNE_EVERY_S = 60.0  # segments are removed this much later than they might be
TRANSACTION_S = 30.0  # anything longer is broken: the connection is dropped and the fence read again
FOLDED_AT_ONCE = 1_000  # orders; 0.1-0.3 s, in which Postgres waits for us: well within FENCE_WAIT_S
SIFT_S = 600.0  # to find the refused records of a batch; two minutes when all 20,000 of them are
CONNECT_S = 5.0  # to open a database connection
CLOSE_S = 1.0  # to say goodbye to a database or Redis that may be frozen
DATABASE_RETRY_MAX_S = 2.0  # the longest pause between attempts while Postgres is away
PARTITIONS_AHEAD_DAYS = 3  # made before they are needed
PARTITIONS_EVERY_S = 3_600.0  # they are made days ahead; an hour late harms nobody
MIGRATE_S = 3_600.0  # one migration and the wait for another process: 0005 takes a minute for a million conversions
EVENT_AHEAD_MAX_S = 86_400  # an id further in the future goes to the dead letters
DEAD_BYTES_MAX = 65_536  # of a dead letter are kept
CLICK_WINDOW_DAYS_MAX = 365  # the longest an offer may allow; a changed scope is looked behind for so long
CLICK_WINDOW_DAYS = 30  # default time from a click to its first conversion
BEATS_WAITING_MAX = 64  # of one edge, while events lie unread; every question about completeness looks at them
MEASURE_EVERY_S = 10.0  # how far the figures are complete, as a metric; scrapers come about as often
DRIFT_EVERY_S = 60.0  # how often it is looked for, as a metric; quarter hours are settled no more often
DRIFT_HOURS = 48  # settled ones that are looked at for it: who is told within two days can still ask the log
SILENT_S = 30.0  # thirty beats missed; a restart of the edge, the broker or the consumer takes about ten
DUPLICATE_HINTS_MAX = 100_000  # conversion ids a process remembers to say `duplicate` early

# Kafka, as an aggregator reads it. In memory: FETCH_PARTITION_BYTES_MAX for each of its partitions and FETCH_BYTES_MAX
# for each broker, as the producers packed them, and two batches of events.
FETCH_PARTITION_BYTES_MAX = 2 * 1024 * 1024  # packed, about BATCH_EVENTS_MAX events; a larger batch comes alone
FETCH_BYTES_MAX = 8 * 1024 * 1024  # of one answer of one broker
UNPACKED_MAX = 500  # records at once; 2 ms in which nothing is sent to Postgres
FETCH_BYTES_MIN = 64 * 1024  # a broker gathers up to this,
FETCH_WAIT_S = 0.2  # but no longer than this: that is Postgres' group commit, of all partitions one after the other
CONSUMER_POLL_S = 0.05  # how often an idle consumer looks at what its client has fetched
CONSUMER_METADATA_S = 5.0  # new partitions are read this soon
CONSUMER_SESSION_S = 6.0  # the least that brokers allow; so long the partitions of a dead aggregator wait
CONSUMER_HEARTBEAT_S = 1.5  # three of them may be lost
CONSUMER_JOIN_S = 4.0  # for all members to join again; less than KAFKA_REQUEST_S, because the answer waits for it
CONSUMER_UNUSED_S = 60.0  # who could apply nothing for so long, alone without its Postgres, leaves the work to others
CONSUMER_START_S = 10.0  # to find the cluster; a frozen broker takes KAFKA_REQUEST_S to be given up
CONSUMER_STOP_S = 1.0  # to leave the group in order; else its session ends by itself
CONSUMER_ASSIGN_S = 20.0  # for the group to answer; a broker that has just started reads first what it knows of it
CONSUMER_STALL_S = 10.0  # nothing read while the broker has more: two requests have failed, it will not recover
ASK_PAUSE_MAX_S = 1.0  # between attempts to ask a broker that is away
ASK_S = 2.0  # for the broker to say what it has, while nothing else goes on

# The API
API_POOL_MAX = 8  # connections; a partner's report takes one for its length
API_ACQUIRE_S = 5.0  # then 503: waiting longer helps nobody
STATEMENT_S = 10.0  # for one API statement
LIVE_QUARTERS_MAX = 8  # quarter hours whose live counters one answer looks at: what is behind for longer is a fault
LIVE_IDS_MAX = 5_000  # links or partners whose counters it looks at, some 10 ms of Redis; of others Postgres is shown
LIVE_FIELDS_AT_ONCE = 1_000  # in one command: 0.3 ms in which Redis answers nobody else
REPORT_POOL_MAX = 6  # connections for reports alone: those that take long leave the other calls theirs
REPORT_STATEMENT_S = 20.0  # for one statement of a report; a partner's standard one takes 0.1 s
REPORT_WORK_MEM_BYTES = 32 * 1024 * 1024  # that a sort or a hash of a report may take before it goes to disk
REPORTS_AT_ONCE_PER_KEY = 6  # in one process; what a browser asks of one host at once
STREAMS_AT_ONCE = 3  # CSV, each with a connection for as long as its reader takes; half of them is for the others
STREAM_S = 900.0  # a stream keeps a transaction open, so that Postgres cannot tidy up; a million rows take a minute
STREAM_ROWS_AT_ONCE = 500  # 3-5 ms in which the API answers nobody else
STATE_S = 1.0  # how far reports are complete, and what has changed, is looked at this often
VERSIONS_MAX = 5_000  # ranges of owners that a process knows for so long, about 2 MB
REMEMBERED_MAX = 256  # answers of a kind that a process remembers; the largest has 150 kB
REMEMBERED_BYTES_MAX = 32_768  # of one in Redis, which must never run full: at most 20 MB for each key's 600 a minute
MADE_AT_ONCE_MAX = 3  # answers of a kind that are being made: each has one of the connections, and others want some
ANSWERS_WAITING_MAX = 200  # different questions that wait to be answered, seconds each
REPORT_CLOSED_S = 3_600.0  # a report whose whole time is settled, under the version of its rows
REPORT_OPEN_S = 2.0  # a report of time that goes on; it says itself how far it is complete
SCORE_S = 300.0  # a score moves little in five minutes
SCORE_DAYS = 28  # of clicks that scores are made from: four of each day of the week
REPORT_DAYS_MAX = 367  # one leap year and a day
RECONCILED_HOURS_MAX = 744  # in one answer: a month, whose clicks are counted one by one, three million a second
SYSTEM_ROWS_MAX = 1_000  # edges, and partitions, in one answer; the ones to act on come first
DEAD_LETTERS_COUNTED_MAX = 100_000  # beyond it the figure says no more, and counting takes long
PAGE_ROWS_MAX = 1_000  # rows of a list in one answer; the next page has a cursor
PAGE_ROWS_DEFAULT = 100  # a screen or two
LIST_ROWS_READ = 50_000  # clicks or conversions that are looked at for a page of those wanted: 0.1 s; the next goes on
EXTERNAL_ID_MAX = 64  # characters of an id that was given elsewhere; UUIDs have 36
TERMS_PER_OFFER_MAX = 1_000  # hundreds of partners' own, and changes; a batch of conversions reads them all, 15 ms
CLICK_AMOUNT_MINOR_MAX = 1_000_000_000  # for one click; a day of a billion of them is still an int8
TIERS_MAX = 20  # of one set of terms; the longest ladder an operator shows to partners has a handful
SALES_READ = 500  # rows at once when a month is closed: 5 ms in which the API answers nobody else
CHANGED_LATER_S = 3_600.0  # a change is seen at most this much later than it says: TRANSACTION_S, amply
DEEP_LINK_MACROS_MAX = 16  # in one; three hundred, each of a long value, come to a Location of 1 MB
DEEP_LINK_HOSTS_MAX = 100  # of one offer; a shop with a host in every country has fewer
PARAMETER_NAME_MAX = 64  # characters of the query parameter that an offer takes click ids in
LANDINGS_MAX = 20  # of one offer; each click looks at all of them
LANDING_WEIGHT_MAX = 10_000  # shares down to a hundredth of a percent
HOURS_MAX = 56  # parts of the week in one targeting; eight on each day
TARGETING_VALUES_MAX = 300  # in one list; there are 249 countries
TARGETING_VALUE_MAX = 64  # characters of the name of a browser, a system, a language
APPROVALS_PER_PARTNER_MAX = 1_000  # they lie in the partner's value, which each of its clicks may have to read
REQUESTS_PER_MINUTE = 600  # of a key that was given no other limit: ten a second, all day long
REQUESTS_PER_MINUTE_MAX = 60_000  # what one process of the API can answer in a minute, about
RATE_WINDOW_S = 60.0  # a minute
RATE_TIMEOUT_S = 0.100  # the longest that counting a call may hold it up; then it passes uncounted
LAST_USED_EVERY_S = 60.0  # `last_used_at` of a key is written no more often
SCOPES_MAX = 100  # in one key; there are about thirty
ROTATION_H = 24  # how long a key that was replaced still works: everything that uses it is deployed once a day
ROTATION_H_MAX = 720  # a month of two keys is long enough
DOMAINS_MAX = 200  # they lie in one value, which every edge reads again when any of them changes
BLOCKS_MAX = 1_000  # of one partner, and of all: they lie in one value, which its clicks may have to read
IDEMPOTENCY_KEEP_H = 24  # a repetition comes within minutes; later ones are other requests
CAPS_PER_PARTNER_MAX = 200  # they lie in the partner's value, too, and every click of it looks at all of them
CAP_MAX = 10**15  # clicks, conversions or minor units; Redis counts exactly up to 2^53
LINKS_PER_PARTNER_MAX = 10_000  # that it makes itself: a script of its own that ran wild; operators may make more
AUDIT_ROWS_MAX = 200  # acts in one answer; the next page has a cursor
INTAKE_ROWS_MAX = 200  # intakes in one answer, each with up to 4 kB as it was sent
HISTORY_ROWS_MAX = 200  # changes, entries, intakes of one conversion that are shown with it; the first ones
RERUN_INTAKES_MAX = 1_000  # in one call and transaction, about a second; the next call goes on
SOURCE_MAX = 300  # characters of a source: a topic's name has at most 249, its id 32
REPORT_ROWS_MAX = 1_000  # rows in one answer; the next page has a cursor
REPORT_GROUPS_MAX = 2  # beside time; three of them are hardly ever the same twice, and that is a list of clicks
REPORT_BUCKETS_MAX = 9_600  # of quarter hours, a hundred days: as many times go with the question to Postgres
RAW_DAYS_MAX = 31  # of a question that no rollup answers: a month of clicks is read within the statement's time
FILTER_VALUES_MAX = 100  # of one filter; each row is held against all of them

POSTBACKS_PER_MINUTE = 60_000  # that an edge process takes of an advertiser: a thousand a second, all day long
POSTBACKS_PER_MINUTE_MAX = 6_000_000  # ten times what a process can answer
PAGES_PER_MINUTE = 6_000  # at most, from its pages: a hundred sales a second, and anybody can send them
PAGES_OF_NETWORK_PER_MINUTE = 600  # of them from one /24 or /48: its buyers, or who would use up those of all
STATUSES_MAX = 100  # words that an advertiser says instead of our four; they lie in its value
STATUS_MAX = 64  # characters of such a word
NETWORKS_MAX = 100  # that an advertiser sends from; each of its postbacks is held against all of them
PIXEL_ORIGINS_MAX = 100  # pages of an advertiser: a shop with a host in every country has fewer
SCOPES_PER_OFFER_MAX = 20  # they lie in the offer's value, and nobody changes them often
AUTO_APPROVE_DAYS_MAX = 365  # a hold of a year is a promise that nobody believes
DURATION_MONTHS_MAX = 1_200  # a hundred years, for those who mean for ever

# Import and export
IMPORT_ROWS_MAX = 100_000  # of one POST; half a minute of work, and the keys of its rows are held in memory, 20 MB
IMPORT_BYTES_MAX = 128 * 1024 * 1024  # of one POST; 100,000 rows with every URL filled come to about 60 MB
IMPORT_LINE_BYTES_MAX = 65_536  # of one row; an offer with 20 landings comes to about 10 kB
IMPORT_BATCH_ROWS = 1_000  # in one transaction; 0.1-0.2 s, so that calls of others pass in between
IMPORT_ERRORS_MAX = 1_000  # told in one answer, the rest is counted; the command sends no more rows than that at once
IMPORT_RETRY_S = 120.0  # so long the command tries while the API says nothing useful; a restart takes ten seconds
EXPORT_PAUSE_MAX_S = 60.0  # a reader of an export that takes nothing for so long is gone
