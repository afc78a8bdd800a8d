-- The community: who is there, who follows whom, and what was posted, commented on and liked. The
-- application writes these tables, Nova reads them; everything else of Nova's learns of a change
-- through change data capture.
--
-- Ids end at 2^53 - 1, the largest that a JavaScript client reads exactly. Times have milliseconds,
-- as everywhere in Nova: a finer time would sort differently here than in the stores that copy it.
--
-- There are no foreign keys. The application may delete in any order and in batches, a copy that
-- arrives by CDC has no order between tables either, and `nova import` checks references itself,
-- because it has to name the line.

CREATE TABLE users (
    user_id    bigint PRIMARY KEY CHECK (user_id BETWEEN 1 AND 9007199254740991),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    username   text NOT NULL DEFAULT '',
    avatar_url text NOT NULL DEFAULT '',
    bio        text NOT NULL DEFAULT '',
    country    text NOT NULL DEFAULT '',
    language   text NOT NULL DEFAULT ''
);

CREATE TABLE posts (
    post_id    bigint PRIMARY KEY CHECK (post_id BETWEEN 1 AND 9007199254740991),
    author_id  bigint NOT NULL CHECK (author_id BETWEEN 1 AND 9007199254740991),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    deleted    boolean NOT NULL DEFAULT false
);
-- Both in the order in which the timeline reads them, and without the deleted ones.
CREATE INDEX posts_by_author ON posts (author_id, created_at DESC, post_id DESC) WHERE NOT deleted;
CREATE INDEX posts_by_time ON posts (created_at DESC, post_id DESC) INCLUDE (author_id) WHERE NOT deleted;

CREATE TABLE follows (
    follower_id  bigint NOT NULL CHECK (follower_id BETWEEN 1 AND 9007199254740991),
    following_id bigint NOT NULL CHECK (following_id BETWEEN 1 AND 9007199254740991),
    created_at   timestamptz(3) NOT NULL DEFAULT now(),
    PRIMARY KEY (follower_id, following_id)
);
-- Whose cached feeds a new post overtakes.
CREATE INDEX follows_by_following ON follows (following_id, follower_id);

-- Counters come from events, never from these two.
CREATE TABLE comments (
    comment_id bigint PRIMARY KEY CHECK (comment_id BETWEEN 1 AND 9007199254740991),
    post_id    bigint NOT NULL CHECK (post_id BETWEEN 1 AND 9007199254740991),
    user_id    bigint NOT NULL CHECK (user_id BETWEEN 1 AND 9007199254740991),
    created_at timestamptz(3) NOT NULL DEFAULT now()
);

CREATE TABLE likes (
    like_id    bigint PRIMARY KEY CHECK (like_id BETWEEN 1 AND 9007199254740991),
    post_id    bigint NOT NULL CHECK (post_id BETWEEN 1 AND 9007199254740991),
    -- NULL: anonymous.
    user_id    bigint CHECK (user_id BETWEEN 1 AND 9007199254740991),
    created_at timestamptz(3) NOT NULL DEFAULT now()
);
