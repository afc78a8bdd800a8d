//! Stored messages of Debezium 3.6, in `tests/fixtures/formats`.

use super::*;
use nova_model::time::utc;

macro_rules! stored {
    ($table:ident, $name:literal) => {
        decode(
            Table::$table,
            Some(include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../tests/fixtures/formats/v1/cdc/",
                $name
            ))),
        )
    };
}

fn post(post_id: u64, author_id: u64, created_ms: u64, deleted: bool) -> Post {
    Post {
        post_id,
        author_id,
        created_at: utc(created_ms),
        deleted,
    }
}

fn of_posts(before: Option<Post>, after: Option<Post>, lsn: u64, committed_ms: u64) -> RowChange {
    RowChange::Post(Transition {
        before,
        after,
        lsn,
        committed_ms,
        snapshot: false,
    })
}

#[test]
fn stored_changes_of_posts_are_read() {
    const OLD_MS: u64 = 1_767_323_045_678;
    const NEW_MS: u64 = 1_769_990_400_000;
    let new = |author_id, deleted| Some(post(11, author_id, NEW_MS, deleted));
    let cases = [
        (
            stored!(Posts, "post_inserted.json"),
            of_posts(None, new(1, false), 37_144_056, 1_795_472_544_446),
        ),
        (
            stored!(Posts, "post_marked_deleted.json"),
            of_posts(new(1, false), new(1, true), 37_144_408, 1_795_472_544_450),
        ),
        (
            stored!(Posts, "post_given_to_another_author.json"),
            of_posts(new(1, true), new(2, true), 37_144_784, 1_795_472_544_458),
        ),
        (
            stored!(Posts, "post_deleted.json"),
            of_posts(
                Some(post(10, 1, OLD_MS, false)),
                None,
                37_144_648,
                1_795_472_544_454,
            ),
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found.unwrap().unwrap(), expected);
    }
}

#[test]
fn stored_changes_of_users_likes_and_follows_are_read() {
    let user = User {
        user_id: 1,
        created_at: utc(1_767_323_045_678),
        username: "ann".into(),
        avatar_url: "http://a/1.png".into(),
        bio: "hi".into(),
        country: "NL".into(),
        language: "nl".into(),
    };
    let like = Like {
        like_id: 5,
        post_id: 10,
        user_id: None,
        created_at: utc(1_795_472_486_231),
    };
    let follow = Follow {
        follower_id: 2,
        following_id: 1,
        created_at: utc(1_795_472_486_231),
    };
    let users = RowChange::User(read_in_snapshot(user));
    let found = stored!(Users, "user_read_in_the_snapshot.json");
    assert_eq!(found.unwrap().unwrap(), users);
    let likes = RowChange::Like(read_in_snapshot(like));
    let found = stored!(Likes, "anonymous_like.json");
    assert_eq!(found.unwrap().unwrap(), likes);
    let follows = RowChange::Follow(Transition {
        before: Some(follow),
        after: None,
        lsn: 37_281_128,
        committed_ms: 1_795_472_544_484,
        snapshot: false,
    });
    let found = stored!(Follows, "unfollow.json");
    assert_eq!(found.unwrap().unwrap(), follows);
}

fn read_in_snapshot<R>(row: R) -> Transition<R> {
    Transition {
        before: None,
        after: Some(row),
        lsn: 37_143_816,
        committed_ms: 1_795_472_524_915,
        snapshot: true,
    }
}
